"""What a run writes about itself: readable by others, cut back on resume, and never the reason that it ends."""

import errno
import json
import logging

import pytest

from videorl import console, exits
from videorl import log as logs
from videorl.log import Metrics, Progress, duration, log
from videorl.registry import UserError

ROW = {"step": 3, "epoch": 0.5, "loss": 1.25, "lr": 0.1}
STATS = {"epoch": "1/2", "iter": "3/6", "loss": 1.23456789, "lr": 1e-7, "eta": "0:00:09", "top1_err": 25.0}


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


def rows(folder, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_json_stats_are_read_as_pyslowfast_s(tmp_path):
    """Its tools take the lines that begin with `json_stats: ` and read the rest as json."""
    metrics = Metrics(tmp_path)
    metrics.train(ROW, STATS)
    metrics.evaluated({"name": "val", **ROW}, {"_type": "val_epoch", "top1_err": float("nan"), "n": 7})
    prefix = "json_stats: "
    lines = (tmp_path / "json_stats.log").read_text().splitlines()
    assert all(line.startswith(prefix) for line in lines)
    train, val = (json.loads(line.removeprefix(prefix)) for line in lines)
    assert train == {**STATS, "_type": "train_iter_", "step": 3, "loss": 1.23457, "lr": 0.0}
    assert list(train) == sorted(train)
    assert val == {"_type": "val_epoch", "step": 3, "top1_err": None, "n": 7}


def test_metrics_lines(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.train(ROW, STATS)
    metrics.evaluated({"name": "val", "top1": 0.5, "step": 3}, STATS)
    assert rows(tmp_path) == [{"kind": "train", **ROW}, {"kind": "eval", "name": "val", "top1": 0.5, "step": 3}]


def stats_steps(folder) -> list[int]:
    lines = (folder / "json_stats.log").read_text().splitlines()
    return [json.loads(line.removeprefix("json_stats: "))["step"] for line in lines]


def test_a_resumed_run_forgets_the_steps_it_does_again(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.forget_after(5.5)
    assert list(tmp_path.iterdir()) == []
    for step in range(1, 8):
        metrics.note("nonfinite.jsonl", {"step": step - 1, "loss": "nan", "samples": [3]})
        metrics.train({**ROW, "step": step}, STATS)
        if step in (5, 7):
            metrics.evaluated({"name": "val", "step": step}, {"_type": "val_epoch"})
    quarantined = [
        {"path": "a", "met": [2, 5, 5.5, 6], "count": 4},
        {"path": "b", "met": [6]},
        {"path": "c", "met": []},
    ]
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in quarantined))
    for name, begin in (("metrics.jsonl", b""), ("json_stats.log", b"json_stats: "), ("nonfinite.jsonl", b"")):
        with (tmp_path / name).open("ab") as out:
            out.write(b'null\n{"step": null}\n\xff\xfe\0\n' + begin + b'{"kind": "train", "step": 4, "lo')  # kill -9
    metrics.forget_after(5.5)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 5]
    assert stats_steps(tmp_path) == [1, 2, 3, 4, 5, 5]
    assert [row["step"] for row in rows(tmp_path, "nonfinite.jsonl")] == [0, 1, 2, 3, 4]
    kept = [{"path": "a", "met": [2, 5, 5.5], "count": 3}, {"path": "c", "met": []}]
    assert rows(tmp_path, "quarantine.jsonl") == kept
    metrics.forget_after(5)
    assert [(row["kind"], row["step"]) for row in rows(tmp_path)][-1] == ("train", 5), "stopped before the evaluation"
    assert stats_steps(tmp_path) == [1, 2, 3, 4, 5]
    assert rows(tmp_path, "quarantine.jsonl")[0]["met"] == [2, 5]
    metrics.train({**ROW, "step": 6}, STATS)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert stats_steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    metrics.forget_after(0)
    assert rows(tmp_path) == stats_steps(tmp_path) == rows(tmp_path, "nonfinite.jsonl") == []
    assert rows(tmp_path, "quarantine.jsonl") == [{"path": "c", "met": []}], "a test met it"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(logs.LOGS)


@pytest.mark.parametrize(("until", "shown"), [(2.5, [1, 2]), (2, [1, 2]), (0.0, [])])
def test_tensorboard_shows_no_step_twice(tmp_path, until, shown):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = Metrics(tmp_path)
    before.draw_in(tmp_path / "events")
    for step in (1, 2, 3):
        before.train({**ROW, "step": step}, STATS)
        before.evaluated({"name": "val", "top1": 0.5, "step": step}, STATS)
    before.close()
    again = Metrics(tmp_path)
    again.forget_after(until)
    again.draw_in(tmp_path / "events", until)
    again.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    evaluated = shown if until % 1 else shown[:-1]
    assert steps.get("Train/loss", []) == shown
    assert steps.get("val/top1", []) == evaluated


def test_a_log_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path, said):
    (tmp_path / "metrics.jsonl").mkdir()
    metrics = Metrics(tmp_path)
    for _ in range(3):
        metrics.train(ROW, STATS)
        metrics.evaluated({"name": "val", **ROW}, STATS)
        metrics.forget_after(3.5)
    assert [r.levelname for r in said.records] == ["WARNING"]
    assert "metrics.jsonl cannot be written (" in said.text
    assert "the run goes on without" in said.text
    assert len((tmp_path / "json_stats.log").read_text().splitlines()) == 6, "the other log is written"


def test_a_full_disk_ends_no_run(tmp_path, said):
    for name in ("metrics.jsonl", "json_stats.log"):
        (tmp_path / name).symlink_to("/dev/full")
    metrics = Metrics(tmp_path)
    (tmp_path / "nonfinite.jsonl").symlink_to("/dev/full")
    for _ in range(3):
        metrics.train(ROW, STATS)
        metrics.note("nonfinite.jsonl", {"step": 3})
    assert said.text.count("No space left on device") == 3
    assert [r.getMessage().split()[0] for r in said.records] == ["metrics.jsonl", "json_stats.log", "nonfinite.jsonl"]


def test_tensorboard_gets_numbers_and_its_failure_ends_no_run(tmp_path, said):
    class Writer:
        got = []

        def add_scalar(self, name, value, step):
            if step > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.got.append((name, value, step))

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    metrics = Metrics(tmp_path)
    metrics.draw(lambda writer: pytest.fail("there is no writer"))
    metrics.writer = Writer()
    metrics.train({**ROW, "note": "text"}, STATS)
    assert Writer.got == [(f"Train/{k}", v, 3) for k, v in ROW.items()]
    for step in (4, 5):
        metrics.train({**ROW, "step": step}, STATS)
    metrics.draw(lambda writer: writer.add_scalar("x", 1, 9))
    metrics.close()
    assert said.text.count("TensorBoard cannot be written") == 1
    assert [row["step"] for row in rows(tmp_path)] == [3, 4, 5]


def test_an_event_folder_that_cannot_be_made_ends_no_run(tmp_path, said):
    (tmp_path / "events").write_text("a file")
    metrics = Metrics(tmp_path)
    metrics.draw_in(tmp_path / "events")
    assert metrics.writer is None
    assert "no TensorBoard files" in said.text


def test_the_main_process_logs_to_console_and_file(tmp_path, capsys):
    logs.setup(tmp_path, main=True)
    log.info("hello %d", 3)
    logs.setup(tmp_path, main=True)
    log.info("again")
    lines = (tmp_path / "stdout.log").read_text().splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["hello 3", "again"]
    assert capsys.readouterr().out.splitlines() == lines


def test_the_other_processes_only_warn(tmp_path, capsys):
    logs.setup(tmp_path, main=False)
    log.info("hello")
    log.warning("careful")
    assert "careful" in capsys.readouterr().out
    assert not (tmp_path / "stdout.log").exists()


def test_a_console_log_that_cannot_be_made_ends_no_run(tmp_path, capsys):
    (tmp_path / "stdout.log").mkdir()
    logs.setup(tmp_path, main=True)
    log.info("goes on")
    said = capsys.readouterr().out
    assert "stdout.log cannot be written" in said
    assert "goes on" in said


def test_a_disk_that_fills_up_is_told_once_on_the_console(tmp_path, capsys):
    (tmp_path / "stdout.log").symlink_to("/dev/full")
    logs.setup(tmp_path, main=True)
    for number in range(3):
        log.info("line %d", number)
    out, err = capsys.readouterr()
    assert [line.partition("] ")[2] for line in out.splitlines()] == [
        "line 0",
        "stdout.log cannot be written ([Errno 28] No space left on device); the run goes on without",
        "line 1",
        "line 2",
    ]
    assert err == ""


def test_progress_counts_from_where_a_run_resumed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    progress = Progress(10, "train", shown=False, start=4)
    for _ in range(2):
        now[0] += 3.0
        progress.step()
    assert progress.seconds_left() == pytest.approx(4 * 3.0)
    progress.close()


def test_time_left_follows_the_recent_steps_and_what_comes_between_them(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    progress = Progress(1000, "train", shown=False)
    for seconds in (*[60.0] * 10, *[2.0] * logs.RECENT):
        now[0] += seconds
        progress.step()
    assert progress.seconds_left() == pytest.approx(940 * 2.0)
    now[0] += 120.0  # an evaluation every 60 steps
    progress.go_on()
    assert progress.seconds_left() == pytest.approx(940 * (2.0 + 120 / 60))


def test_durations_are_read_as_a_clock():
    assert duration(3661.9) == "1:01:01"


HOSTILE = "a\x1b[31m\nerror: b\r.mp4\udcff"
ESCAPED = r"a\x1b[31m\nerror: b\r.mp4\udcff"


def test_text_of_others_is_one_line_without_codes(tmp_path, capsys):
    logs.setup(tmp_path, main=True)
    logging.getLogger("videorl.video.errors").warning("%s cannot be read", HOSTILE)
    log.warning(f"{HOSTILE} is odd")
    try:
        raise OSError(HOSTILE)
    except OSError:
        log.exception("what it said")
    logs.say(f"1 file: {HOSTILE}")
    out = capsys.readouterr().out
    assert out.split("\n")[0].endswith(f"] {ESCAPED} cannot be read")
    assert out.split("\n")[1].endswith(f"] {ESCAPED} is odd")
    assert f"1 file: {ESCAPED}\n" in out
    assert (tmp_path / "stdout.log").read_text().split("\n")[:2] == out.split("\n")[:2]
    assert all(c.isprintable() or c == "\n" for c in out)


def test_a_table_keeps_its_lines_and_no_codes():
    record = logging.LogRecord("videorl", logging.INFO, "", 0, "loaded\n    missing \x1b[31m a", (), None)
    record.table = True
    assert console.Printable("%(message)s").format(record) == "loaded\n    missing \\x1b[31m a"


def test_errors_and_early_warnings_are_one_line_without_codes(capsys, monkeypatch):
    with pytest.raises(SystemExit), exits.exit_codes():
        raise UserError(f"{HOSTILE} does not exist")
    with pytest.raises(SystemExit), exits.exit_codes():
        raise exits.Lost(f"rank 1 died at {HOSTILE}")
    log.handlers.clear()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.warning("%s: no such key", HOSTILE)
    said = f"error: {ESCAPED} does not exist\nerror: rank 1 died at {ESCAPED}\n{ESCAPED}: no such key\n"
    assert capsys.readouterr().err == said
