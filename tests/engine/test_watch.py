"""What one rank sees of the others through the folder of a run."""

import itertools
import json
import os
import signal
import time
from types import SimpleNamespace

import pytest

from videorl import dist, exits
from videorl.engine import watch as watch_module
from videorl.engine.watch import Watch, forget


def wait_for(condition) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_is_seen_by_all_and_forgotten_by_the_next_run(tmp_path, number):
    other = Watch(tmp_path, 60.0)
    with Watch(tmp_path, 60.0) as watch:
        assert watch.told_to_stop() == other.told_to_stop() == ""
        os.kill(os.getpid(), number)
        wait_for(other.told_to_stop)
        assert watch.told_to_stop() == other.told_to_stop() == number.name
    forget(tmp_path)
    assert Watch(tmp_path, 60.0).told_to_stop() == ""


def test_signals_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Watch(tmp_path, 60.0):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """`ended(how)`: the run of two ranks in which rank 1 ended so."""
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr("videorl.engine.watch.SILENCE", 0.0)

    def write(how: str):
        beat = {"rank": 1, "doing": "evaluation test", "seconds": 1.0, "at": time.time(), "ended": how}
        (tmp_path / "heartbeat").mkdir()
        (tmp_path / "heartbeat/rank_1.json").write_text(json.dumps(beat))
        return tmp_path

    return write


def broken_link() -> RuntimeError:
    return RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")


def test_a_rank_that_another_leaves_because_it_was_told_to_stop_stops_too(ended):
    folder = ended("SystemExit: 75")
    with pytest.raises(SystemExit) as end, Watch(folder, 60.0):
        raise broken_link()
    assert end.value.code == exits.EXIT_PREEMPTED
    assert json.loads((folder / "heartbeat/rank_0.json").read_text())["ended"] == "SystemExit: 75"


def test_a_rank_that_another_leaves_for_any_other_reason_is_lost(ended):
    folder = ended("SampleFailed: sample 5")
    with (
        pytest.raises(exits.Lost, match=r"rank 1 ended \(SampleFailed: sample 5\) at evaluation test"),
        Watch(folder, 60),
    ):
        raise broken_link()


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """`watched(seconds)`: a watch that looks often, so many seconds apart, and what it would have ended for."""
    said = []
    monkeypatch.setattr(watch_module, "PULSE", 0.01)
    monkeypatch.setattr(Watch, "_end", lambda self, why: said.append(why))

    def make(seconds: float):
        now = itertools.count(0.0, seconds)
        monkeypatch.setattr(watch_module, "time", SimpleNamespace(monotonic=lambda: next(now), time=time.time))
        return Watch(tmp_path, 0.2), said

    return make


def test_time_that_the_watch_itself_was_stopped_is_no_silence(watched):
    watch, said = watched(3600.0)
    with watch:
        watch.beat("work")
        wait_for(lambda: watch.clock > 0.1)
        assert said == []
        wait_for(lambda: said)  # it counts that it looked twenty times, whatever the clock says
    assert said[0] == "made no progress for 0 s"


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path):
    (tmp_path / "heartbeat").write_text("a file")
    with Watch(tmp_path, 60.0) as watch:
        watch.beat("work")
        assert watch.told_to_stop() == ""
