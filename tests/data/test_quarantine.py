"""The quarantine: what could not be read is kept, counted over runs, and too much of it ends the run."""

import json
from datetime import datetime

import pytest

from videorl.data.quarantine import Bad, Quarantine, write
from videorl.registry import UserError


def bad(index: int) -> Bad:
    return Bad(index, f"/videos/{index}.mp4", "no frames", "decode")


def rows(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_sample_stands_once_and_is_counted():
    quarantine = Quarantine("kinetics/train", 100, 0.05)
    quarantine.add([bad(3), bad(5), bad(3)])
    quarantine.add([bad(3)])
    assert 3 in quarantine
    assert 4 not in quarantine
    first, second = quarantine.take()
    datetime.fromisoformat(first.pop("first_seen"))
    assert first == {
        "dataset": "kinetics/train",
        "path": "/videos/3.mp4",
        "error": "no frames",
        "stage": "decode",
        "count": 3,
    }
    assert second["count"] == 1


def test_what_was_taken_is_not_taken_again():
    quarantine = Quarantine("x", 100, 0.05)
    quarantine.add([bad(3)])
    assert len(quarantine.take()) == 1
    assert quarantine.take() == []
    quarantine.add([bad(3), bad(4)])
    assert [(row["path"], row["count"]) for row in quarantine.take()] == [("/videos/3.mp4", 1), ("/videos/4.mp4", 1)]
    assert 3 in quarantine


def test_too_many_bad_samples_end_the_run_with_their_list():
    quarantine = Quarantine("kinetics/val", 40, 0.05)
    quarantine.add([bad(1), bad(2), bad(1), bad(2)])
    with pytest.raises(UserError) as error:
        quarantine.add([bad(7)])
    said = str(error.value)
    assert said.startswith(
        "kinetics/val: 3 of 40 samples cannot be read, more than DATA.MAX_BAD_FRACTION 0.05 allows: "
    )
    assert all(f"/videos/{i}.mp4 (no frames)" in said for i in (1, 2, 7))
    assert len(quarantine.take()) == 3, "the list can still be written"


@pytest.mark.parametrize(("fraction", "allowed"), [(0.0, 0), (0.1, 1), (1.0, 10)])
def test_the_fraction_is_of_different_samples(fraction, allowed):
    quarantine = Quarantine("x", 10, fraction)
    quarantine.add([bad(i) for i in range(allowed)] * 3)
    assert len(quarantine.rows) == allowed
    if allowed < 10:
        with pytest.raises(UserError):
            quarantine.add([bad(9)])


def test_a_long_list_is_cut():
    quarantine = Quarantine("x", 1000, 0.05)
    with pytest.raises(UserError) as error:
        quarantine.add(bad(i) for i in range(60))
    assert str(error.value).count(".mp4") == 10


def test_the_file_sums_over_runs_and_ranks(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    write(file, [])
    assert not file.exists()
    for _ in range(2):
        ranks = [Quarantine("a", 100, 1.0), Quarantine("a", 100, 1.0), Quarantine("b", 100, 1.0)]
        for quarantine, index in zip(ranks, (3, 3, 3)):
            quarantine.add([bad(index)])
        write(file, [row for quarantine in ranks for row in quarantine.take()])
    assert [(row["dataset"], row["path"], row["count"]) for row in rows(file)] == [
        ("a", "/videos/3.mp4", 4),
        ("b", "/videos/3.mp4", 2),
    ]
    write(file, [{**rows(file)[0], "path": 'é "\n.mp4', "count": 1, "first_seen": "later"}])
    assert rows(file)[-1]["path"] == 'é "\n.mp4'
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.jsonl"]


def test_the_first_sight_is_kept(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    row = {"dataset": "a", "path": "x", "error": "e", "stage": "open", "count": 2, "first_seen": "2026-01-01"}
    write(file, [row])
    write(file, [{**row, "first_seen": "2026-02-02", "error": "other"}])
    assert rows(file) == [{**row, "count": 4}]
