"""The quarantine: what could not be read is kept, joined over runs, and too much of it ends the run."""

import json
from datetime import datetime

import pytest

from videorl.loading.quarantine import Bad, Quarantine, write
from videorl.registry import UserError


def bad(index: int) -> Bad:
    return Bad(index, f"/videos/{index}.mp4", "no frames", "decode")


def rows(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_sample_stands_once_and_is_counted():
    quarantine = Quarantine("kinetics/train", 100, 0.05)
    quarantine.add([bad(3), bad(5), bad(3)], step=7)
    quarantine.add([bad(3)], step=9)
    assert sorted(quarantine.rows) == [3, 5]
    first, second = quarantine.take()
    datetime.fromisoformat(first.pop("first_seen"))
    assert first == {
        "dataset": "kinetics/train",
        "index": 3,
        "path": "/videos/3.mp4",
        "error": "no frames",
        "stage": "decode",
        "met": [7, 9],
    }
    assert second["met"] == [7]


def test_what_was_taken_is_not_taken_again():
    quarantine = Quarantine("x", 100, 0.05)
    quarantine.add([bad(3)], step=1)
    assert len(quarantine.take()) == 1
    assert quarantine.take() == []
    quarantine.add([bad(3), bad(4)], step=2)
    assert [(row["path"], row["met"]) for row in quarantine.take()] == [("/videos/3.mp4", [2]), ("/videos/4.mp4", [2])]


def test_too_many_bad_samples_are_an_error_with_their_list():
    quarantine = Quarantine("kinetics/val", 40, 0.05)
    quarantine.add([bad(1), bad(2), bad(1), bad(2)], step=1)
    quarantine.check()
    quarantine.add([bad(7)], step=2)
    with pytest.raises(UserError) as error:
        quarantine.check()
    said = str(error.value)
    assert said.startswith(
        "kinetics/val: 3 of 40 samples cannot be read, more than DATA.MAX_BAD_FRACTION 0.05 allows"
        " (repair or remove them, or raise it): "
    )
    assert all(f"/videos/{i}.mp4 (no frames)" in said for i in (1, 2, 7))
    assert len(quarantine.take()) == 3, "the list can still be written"


@pytest.mark.parametrize(("fraction", "allowed"), [(0.0, 0), (0.1, 1), (0.29, 2), (1.0, 10)])
def test_the_fraction_is_of_different_samples(fraction, allowed):
    quarantine = Quarantine("x", 10, fraction)
    quarantine.add([bad(i) for i in range(allowed)] * 3)
    assert len(quarantine.rows) == allowed
    quarantine.check()
    quarantine.add([bad(9)])
    assert quarantine.too_many is (allowed < 10)


def test_a_long_list_is_cut():
    quarantine = Quarantine("x", 1000, 0.05)
    quarantine.add(bad(i) for i in range(60))
    with pytest.raises(UserError) as error:
        quarantine.check()
    assert str(error.value).count(".mp4") == 10


def test_ranks_that_tell_each_other_judge_alike_and_each_writes_its_own():
    """A sample that two ranks have met, in two epochs, counts once."""
    ranks = [Quarantine("x", 40, 0.1) for _ in range(3)]
    met = [[{1, 2}, {3}], [{3}, {3, 1}], [set(), {4}]]
    for epoch in range(2):
        for quarantine, samples in zip(ranks, met):
            quarantine.add((bad(i) for i in sorted(samples[epoch])), step=epoch + 1)
        told = [quarantine.tell() for quarantine in ranks]
        for quarantine in ranks:
            quarantine.hear(told)
        assert [sorted(q.rows) for q in ranks] == [[1, 2, 3] if epoch == 0 else [1, 2, 3, 4]] * 3
    assert [q.untold for q in ranks] == [set()] * 3
    for quarantine in ranks:
        quarantine.check()
    written = [{row["path"][8]: row["met"] for row in quarantine.take()} for quarantine in ranks]
    assert written == [{"1": [1], "2": [1], "3": [2]}, {"1": [2], "3": [1, 2]}, {"4": [2]}]
    ranks[1].add([bad(9)])
    assert [len(quarantine.tell()) for quarantine in ranks] == [0, 1, 0]


@pytest.mark.parametrize(
    ("length", "fraction", "run"),
    [(40, 0.0, 1), (40, 0.05, 3), (10**6, 0.05, 10), (10**6, 0.5, 40), (10**6, 0.99, 2750), (40, 1.0, 40)],
)
def test_a_run_of_bad_samples_that_proves_too_many(length, fraction, run):
    """One more than may be bad, or so many that chance gives the run once in 10^12 times: 0.05 ** 10, 0.5 ** 40 …"""
    assert Quarantine("x", length, fraction).longest_run == run
    assert run in (length, int(fraction * length) + 1) or fraction**run <= 1e-12 < fraction ** (run - 1)


def test_where_nothing_readable_was_found_the_fraction_matters_not():
    quarantine = Quarantine("x", 100, 1.0)
    quarantine.add(bad(i) for i in range(20))
    quarantine.check()
    with pytest.raises(UserError, match="x: 20 of 100 samples cannot be read, and among the last .* /videos/0.mp4"):
        quarantine.check(gave_up=True)


def test_the_file_joins_runs_and_ranks_and_counts_no_step_twice(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    write(file, [])
    assert not file.exists()
    for step in (4, 8, 8):
        ranks = [Quarantine("a", 100, 1.0), Quarantine("a", 100, 1.0), Quarantine("b", 100, 1.0)]
        for quarantine, at in zip(ranks, (step, step + 1, step)):
            quarantine.add([bad(3)], at)
        write(file, [row for quarantine in ranks for row in quarantine.take()])
    assert [(row["dataset"], row["path"], row["count"], row["met"]) for row in rows(file)] == [
        ("a", "/videos/3.mp4", 4, [4, 5, 8, 9]),
        ("b", "/videos/3.mp4", 2, [4, 8]),
    ]
    write(file, [{**rows(file)[0], "path": 'é "\n.mp4', "met": [], "first_seen": "later"}])
    assert rows(file)[-1]["count"] == 1, "a test met it"
    assert rows(file)[-1]["path"] == 'é "\n.mp4'
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.jsonl"]


def test_the_first_sight_is_kept(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    row = {"dataset": "a", "path": "x", "error": "e", "stage": "open", "first_seen": "2026-01-01", "met": [2]}
    write(file, [row])
    write(file, [{**row, "first_seen": "2026-02-02", "error": "other", "met": [3]}])
    assert rows(file) == [{**row, "met": [2, 3], "count": 2}]


def test_moments_of_one_video_have_a_line_each(tmp_path):
    file, quarantine = tmp_path / "quarantine.jsonl", Quarantine("ego4d/train", 100, 1.0)
    quarantine.add([Bad(index, "/v.mp4", f"row {index + 1} has no narration", "index") for index in (4, 7)], step=1)
    write(file, quarantine.take())
    quarantine.add([Bad(7, "/v.mp4", "row 8 has no narration", "index")], step=2)
    write(file, quarantine.take())
    found = [(row["index"], row["error"], row["count"]) for row in rows(file)]
    assert found == [(4, "row 5 has no narration", 1), (7, "row 8 has no narration", 2)]


@pytest.mark.parametrize("kind", ["disk full", "folder", "not ours"])
def test_a_list_that_cannot_be_written_is_told_and_nothing_is_lost(tmp_path, caplog, full_disk, kind):
    file = tmp_path / "quarantine.jsonl"
    if kind == "disk full":
        full_disk()
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_text("my notes\n")
    row = {"dataset": "a", "path": "x", "error": "e", "stage": "open", "first_seen": "2026-01-01", "met": [2]}
    assert not write(file, [row])
    assert f"{file} cannot be written" in caplog.text
    assert kind != "not ours" or file.read_text() == "my notes\n"


def test_each_of_several_data_sets_is_judged():
    """3 of 100 are few of all, but half of the small set."""
    quarantine = Quarantine("all/train", 100, 0.05, {"large": 94, "small": 6})
    quarantine.add([Bad(i, f"{i}.mp4", "gone", "open") for i in (3, 50, 60, 70)])
    quarantine.check()
    quarantine.add([Bad(i, f"{i}.mp4", "gone", "open") for i in (95, 97, 99)])
    with pytest.raises(
        UserError, match="all/train: small: 3 of 6 samples cannot be read, more than DATA.MAX_BAD_FRACTION"
    ):
        quarantine.check()


def test_the_log_names_unreadable_files_but_not_thousands(caplog):
    quarantine = Quarantine("mine/train", 1000, 0.5)
    quarantine.add([Bad(i, f"{i}.mp4", "no such file", "open") for i in range(100)])
    assert len(dict.fromkeys(caplog.messages)) == 20
    assert caplog.messages[0] == "mine/train: 0.mp4 cannot be read (open: no such file)"
    assert caplog.messages[-1].endswith("further ones stand in quarantine.jsonl alone")
