"""Loader workers that crash, hang or fail cost one sample at most; what the run sees is the same for any workers."""

import contextlib
import gc
import itertools
import json
import os
import random
import re
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.faults.conftest import Run, same_bits, shards, starting
from tests.faults.warm import PATIENCE
from videorl.loading import pool
from videorl.loading.pool import Loader, Workers
from videorl.loading.quarantine import Quarantine
from videorl.loading.worker import Job, SampleFailed, candidates
from videorl.registry import UserError
from videorl.video.errors import VideoError

LENGTH, BATCH = 40, 4
PIXELS = 50_000  # of a sample: its batch travels in shared memory


class Clips:
    """Samples that hold their own number. Sample i does `faults[i]()` first; `begun[i]` counts how often."""

    def __init__(self, faults=None, split="train", length=LENGTH, context="fork"):
        self.faults, self.split, self.length, self.epoch = faults or {}, split, length, 0
        self.begun = get_context(context).Array("i", length, lock=False)  # a worker killed with a lock keeps it

    def __len__(self):
        return self.length

    def path(self, i):
        return f"clips/{i}.mp4"

    def __getitem__(self, i):
        self.begun[i] += 1
        extra = self.faults.get(i, dict)()
        video = torch.full((PIXELS,), i, dtype=torch.uint8)
        return {"video": video, "index": torch.tensor(i), "epoch": self.epoch, **(extra or {})}


def jobs(count: int = LENGTH // BATCH, epoch: int = 0) -> list[Job]:
    return [Job(epoch, epoch * count + k, list(range(k * BATCH, (k + 1) * BATCH))) for k in range(count)]


@pytest.fixture
def loader_of():
    """`loader_of(dataset, workers, …)`: a loader that is closed at the end of the test."""
    made = []

    def make(dataset, count=2, prefetch=2, timeout=60.0, budget=0.5, mix=None) -> Loader:
        quarantine = Quarantine("clips", len(dataset), budget)
        made.append(Loader(dataset, Workers(count, prefetch, timeout), quarantine, mix))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def numbers(batches) -> list[list[int]]:
    """The samples of each batch, by pixels and by index, which must agree."""
    found = []
    for batch in batches:
        assert torch.equal(batch["video"], batch["index"].to(torch.uint8)[:, None].expand(-1, PIXELS))
        found.append(batch["index"].tolist())
    return found


WHOLE = [job.samples for job in jobs()]
WITHOUT_5 = [[6 if i == 5 else i for i in samples] for samples in WHOLE]


def kill(number: int):
    return lambda: os.kill(os.getpid(), number)


def hold_the_interpreter():
    """A loop in C that lets no other thread of its process run, as decoders may."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def once(fault, mark: Path):
    def act():
        if not mark.exists():
            mark.touch()
            fault()

    return act


# ----------------------------------------------------------------------------------------------- crash and hang


@pytest.mark.parametrize(
    "fault",
    [kill(signal.SIGKILL), kill(signal.SIGSEGV), lambda: os._exit(0)],
    ids=["SIGKILL", "SIGSEGV", "exit code 0"],
)
def test_a_sample_that_crashes_its_worker_twice_gives_way_to_the_next(loader_of, fault, caplog, request):
    clips = Clips({5: fault})
    loader = loader_of(clips)
    assert numbers(loader.run(jobs())) == WITHOUT_5
    (row,) = loader.quarantine.take()
    assert (row["path"], row["stage"], row["met"], clips.begun[5]) == ("clips/5.mp4", "crash", [2], 2)
    assert [request.node.callspec.id in line for line in caplog.messages[:2]] == [True, True]
    assert "clips/5.mp4: its work is done once more" in caplog.messages[0]
    assert "clips/5.mp4: the sample goes into quarantine" in caplog.messages[1]
    assert "clips/5.mp4 cannot be read (crash" in caplog.messages[2]


def test_a_sample_that_crashes_its_worker_once_is_not_lost(loader_of, tmp_path):
    clips = Clips({5: once(kill(signal.SIGKILL), tmp_path / "fired")})
    loader = loader_of(clips)
    assert numbers(loader.run(jobs())) == WHOLE
    assert (clips.begun[5], loader.quarantine.take()) == (2, [])


@pytest.mark.parametrize("fault", [lambda: time.sleep(600), kill(signal.SIGSTOP), hold_the_interpreter])
def test_a_sample_at_which_its_worker_hangs_gives_way_at_once(loader_of, fault):
    """Also right after the worker has sent another batch, which must not need it any more."""
    clips = Clips({5: fault, 22: fault})
    loader = loader_of(clips, timeout=1.0)
    begun = time.monotonic()
    expected = [[{5: 6, 22: 23}.get(i, i) for i in samples] for samples in WHOLE]
    assert numbers(loader.run(jobs())) == expected
    assert time.monotonic() - begun < 30
    assert [(row["path"], row["stage"]) for row in loader.quarantine.take()] == [
        ("clips/5.mp4", "hang"),
        ("clips/22.mp4", "hang"),
    ]
    assert (clips.begun[5], clips.begun[22]) == (1, 1)


def test_time_that_the_main_process_was_stopped_does_not_count(loader_of, monkeypatch):
    """As if it were stopped for an hour each time that it waits."""
    now = itertools.count(0.0, 3600.0)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(pool, "wait", lambda handles, timeout: wait(handles, timeout=0.05))
    loader = loader_of(Clips({5: lambda: time.sleep(0.3)}), timeout=60.0)
    assert numbers(loader.run(jobs())) == WHOLE
    assert loader.quarantine.take() == []


def test_what_is_lost_is_not_read_again_in_later_epochs(loader_of):
    clips = Clips({5: kill(signal.SIGKILL)})
    loader = loader_of(clips)
    for epoch in range(3):
        assert numbers(loader.run(jobs(epoch=epoch))) == WITHOUT_5
    (row,) = loader.quarantine.take()
    assert (row["met"], clips.begun[5]) == ([2, 12, 22], 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_is_no_fault_of_a_sample(loader_of, number):
    """Queue systems send it to workers too; for those the main process decides."""
    loader = loader_of(Clips())
    batches = loader.run(jobs())
    found = numbers([next(batches)])
    for _ in range(6):
        for worker in loader.pool.workers:
            os.kill(worker.process.pid, number)
        found += numbers([next(batches)])
    assert found + numbers(batches) == WHOLE
    assert loader.quarantine.take() == []
    assert loader.pool.strikes == {}


def die():
    os._exit(3)


@pytest.mark.slow
def test_workers_of_a_fork_server_stay_and_are_replaced():
    """Their parent is the server; it was taken for a sign that the main process is gone."""
    clips = Clips({5: die}, context="forkserver")
    loader = Loader(clips, Workers(1, 2, 60.0, context="forkserver"), Quarantine("clips", LENGTH, 0.5))
    with contextlib.closing(loader):
        assert numbers(loader.run(jobs())) == WITHOUT_5
        (worker,) = loader.pool.workers
        worker.process.join(2.5)
        assert worker.process.is_alive()


def test_workers_that_die_outside_any_sample_are_an_error_and_no_loop(loader_of):
    loader = loader_of(Clips(), mix=lambda batch, job: os._exit(9))
    with pytest.raises(UserError, match="keep dying outside any sample .exit code 9.*lower DATA_LOADER.NUM_WORKERS"):
        list(loader.run(jobs()))


# ---------------------------------------------------------------------------------------- faults of the program


def bug():
    raise RuntimeError("a bug")


def odd_bug():
    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__(a)

    raise Odd("odd bug", 2)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (bug, r"sample 5 \(clips/5.mp4\): RuntimeError: a bug\n.*in bug"),
        (odd_bug, r"sample 5 \(clips/5.mp4\): Odd: odd bug\n"),
        (lambda: {"video": torch.zeros(3)}, r"batch of samples \[4, 5, 6, 7\]: RuntimeError: stack expects"),
        (lambda: {"index": "five"}, r"batch of samples \[4, 5, 6, 7\]: "),
    ],
    ids=["bug", "unpicklable", "ragged", "mixed"],
)
def test_a_bug_ends_the_run_and_names_the_sample(loader_of, fault, message, count):
    with pytest.raises(SampleFailed, match=f"(?s){message}"):
        list(loader_of(Clips({5: fault}), count).run(jobs()))


def test_what_cannot_be_sent_is_an_error_and_no_hang(loader_of):
    clips = Clips({i: lambda: {"name": lambda: 0} for i in range(4, 8)})
    with pytest.raises(SampleFailed, match="a batch of video, index, epoch, name cannot be sent"):
        list(loader_of(clips).run(jobs()))


# ------------------------------------------------------------------------------------------------ unreadable samples


def unreadable(i: int):
    def act():
        raise VideoError(f"clips/{i}.mp4", "open", "empty file")

    return act


@pytest.mark.parametrize("count", [0, 2])
def test_training_takes_the_next_sample_and_counts(loader_of, count):
    loader = loader_of(Clips({i: unreadable(i) for i in (5, 6, 39)}), count)
    instead = {5: 7, 6: 7, 39: 0}
    assert numbers(loader.run(jobs())) == [[instead.get(i, i) for i in samples] for samples in WHOLE]
    rows = loader.quarantine.take()
    assert [(r["path"], r["error"], r["stage"], r["met"]) for r in rows] == [
        ("clips/5.mp4", "empty file", "open", [2]),
        ("clips/6.mp4", "empty file", "open", [2]),
        ("clips/39.mp4", "empty file", "open", [10]),
    ]


@pytest.mark.parametrize("count", [0, 2])
def test_evaluation_takes_no_other_sample(loader_of, count):
    clips = Clips({**{i: unreadable(i) for i in (5, 8, 9, 10, 11)}}, split="val")
    found = [batch and batch["index"].tolist() for batch in loader_of(clips, count).run(jobs())]
    assert found == [WHOLE[0], [4, 6, 7], None, *WHOLE[3:]]


@pytest.mark.parametrize("count", [0, 2])
def test_a_long_row_of_unreadable_samples_gives_way_to_others_from_all_over(loader_of, count):
    """More than the neighbours that are tried: they are not all replaced by the first good one after them."""
    row = range(10, 160)
    loader = loader_of(Clips({i: unreadable(i) for i in row}, length=200), count, budget=0.8)
    found = numbers(loader.run(jobs(50)))
    given = {i: g for job, samples in zip(jobs(50), found, strict=True) for i, g in zip(job.samples, samples)}
    assert [i for i, g in given.items() if i != g] == list(row)
    instead = [given[i] for i in row]
    assert not set(instead) & set(row)
    assert max(map(instead.count, instead)) < 40


@pytest.mark.parametrize("length", [*range(1, 70), 1000])
def test_candidates_are_a_sample_its_neighbours_and_any_other(length):
    for i in {0, length // 2, length - 1}:
        found = list(candidates(i, length, length))
        assert sorted(found) == list(range(length))
        assert found[:16] == [(i + k) % length for k in range(min(length, 16))]
        assert list(candidates(i, length, 5)) == found[:21]
    far = sorted(list(candidates(0, length, 10))[16:])
    assert length < 1000 or max(b - a for a, b in zip([16, *far], [*far, length])) < length / 4, "from all over"


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_but_unreadable_samples_gives_no_batch_and_is_no_loop(loader_of, count):
    clips = Clips({i: unreadable(i) for i in range(LENGTH)})
    loader = loader_of(clips, count, budget=0.3)
    assert list(loader.run(jobs(2))) == [None, None]
    assert loader.quarantine.longest_run == 13
    assert sum(clips.begun) == 2 * (16 + 13)
    with pytest.raises(UserError, match="of 40 samples cannot be read, more than DATA.MAX_BAD_FRACTION 0.3 allows"):
        loader.quarantine.check()


def test_a_set_of_less_than_16_unreadable_samples_is_read_once(loader_of):
    clips = Clips({i: unreadable(i) for i in range(BATCH)}, length=BATCH)
    assert list(loader_of(clips, 0, budget=1.0).run(jobs(1))) == [None]
    assert list(clips.begun) == [1] * BATCH


@pytest.mark.parametrize("count", [0, 2])
def test_an_evaluation_with_more_bad_samples_than_may_be_ends_there(loader_of, count):
    clips = Clips({i: unreadable(i) for i in (2, 9, 17, 21)}, split="val")
    loader = loader_of(clips, count, budget=0.05)
    assert len(list(loader.run(jobs()))) == 4  # batches 0 to 3 hold two bad samples, batch 4 the third
    with pytest.raises(UserError, match=r"3 of 40 .*MAX_BAD_FRACTION 0.05 .*clips/2.mp4 .empty file.; clips/9.mp4"):
        loader.quarantine.check()


@pytest.mark.parametrize("count", [0, 2])
def test_training_leaves_the_verdict_to_all_ranks(loader_of, count):
    loader = loader_of(Clips({i: unreadable(i) for i in (2, 9, 17, 21)}), count, budget=0.05)
    assert len(list(loader.run(jobs()))) == 10
    assert loader.quarantine.too_many


# ------------------------------------------------------------------------------------------- order, memory, leftovers


@pytest.mark.parametrize("seed", range(6))
def test_batches_come_in_the_order_of_jobs_whatever_the_delays(loader_of, seed):
    rng = random.Random(seed)
    count, prefetch, length = rng.randint(1, 4), rng.randint(1, 3), 24

    def delay():
        time.sleep(random.Random(os.getpid() + time.monotonic_ns()).choice([0, 0, 0, 0.004, 0.02]))

    clips = Clips(dict.fromkeys(range(LENGTH), delay))
    loader = loader_of(clips, count, prefetch)
    wanted = [Job(seed, k, rng.choices(range(LENGTH), k=rng.randint(1, 3))) for k in range(length)]
    found = []
    for k, batch in enumerate(loader.run(wanted)):
        allowed = sum(len(job.samples) for job in wanted[: k + count * prefetch])
        assert sum(clips.begun) <= allowed
        found.append((batch["index"].tolist(), set(batch["epoch"])))
    assert found == [(job.samples, {seed}) for job in wanted]
    assert sum(clips.begun) == sum(len(job.samples) for job in wanted)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_new_run_after_an_abandoned_one_gives_its_own_batches(loader_of, taken):
    loader = loader_of(Clips(), count=3, prefetch=3)
    for epoch in range(3):
        batches = loader.run(jobs(epoch=epoch))
        assert numbers([next(batches) for _ in range(taken)]) == WHOLE[:taken]
    last = list(loader.run(jobs(epoch=9)))
    assert numbers(last) == WHOLE
    assert {epoch for batch in last for epoch in batch["epoch"]} == {9}


def shared_memories() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:batch")


def test_shared_memory_goes_with_the_batch(loader_of):
    loader = loader_of(Clips())
    batches = loader.run(jobs())
    kept = [next(batches)["video"]]
    while_kept = shared_memories()
    del kept
    del batches
    list(loader.run(jobs()))
    gc.collect()
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert while_kept >= 1
    assert shared_memories() == 0
    assert not [link for link in links if "memfd:batch" in os.readlink(link)]


def test_all_kinds_of_tensors_arrive_as_they_were(loader_of):
    large = torch.randn(3, 30_000)
    extra = {
        "large": large, "bfloat": large.bfloat16(), "turned": large.T, "small_bfloat": torch.ones(3).bfloat16(),
        "none": torch.zeros(0, 3), "array": np.arange(3.0), "text": "caption", "flags": torch.tensor([True, False]),
    }  # fmt: skip
    here, there = (
        next(iter(loader_of(Clips(dict.fromkeys(range(LENGTH), lambda: extra)), n).run(jobs(1)))) for n in (0, 1)
    )
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert type(there[name]) is type(value), name
        same = torch.equal(there[name], value) if isinstance(value, torch.Tensor) else there[name] == value
        assert same, name
        assert not isinstance(value, torch.Tensor) or there[name].stride() == value.stride(), name
    assert there["bfloat"].dtype == torch.bfloat16


def test_no_worker_is_left_after_close(loader_of):
    loader = loader_of(Clips())
    list(loader.run(jobs(2)))
    processes = [worker.process for worker in loader.pool.workers]
    assert all(p.is_alive() for p in processes)
    loader.close()
    assert not any(p.is_alive() for p in processes)


# ------------------------------------------------------------------------------------------------------- whole runs

SHORT = ("SOLVER.MAX_EPOCH", 2, "TRAIN.EVAL_PERIOD", 0, "TEST.ENABLE", False)
TWO = ("DATA_LOADER.NUM_WORKERS", 2)


def quarantined(run) -> list[tuple]:
    file = run.out / "quarantine.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(row["dataset"], Path(row["path"]).name, row["stage"], row["count"]) for row in rows]


def same_run(one, other) -> bool:
    states = [
        {key: run.final()[key] for key in ("model_state", "optimizer_state", "steps_done")} for run in (one, other)
    ]
    return same_bits(*states) and one.losses() == other.losses()


def left_over(run) -> list[int]:
    """Living processes of the session that the run leads."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = file.read_text().rpartition(") ")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(session) == run.process.pid and state != "Z":
            found.append(int(file.parent.name))
    return found


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    with starting(world, tmp_path_factory.mktemp("undisturbed")) as start:
        return start("out", *SHORT).wait()


def test_a_worker_killed_once_changes_no_bit_of_the_run(run, undisturbed, tmp_path):
    one = run("once", *SHORT, *TWO, fault=f"kill@sample=5,once={tmp_path / 'mark'}").wait()
    assert (one.code, undisturbed.code, one.fired) == (0, 0, 1), one.stderr
    assert quarantined(one) == []
    assert same_run(one, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("action", "stage", "fired"), [("segv", "crash", 2), ("sleep", "hang", 1)])
def test_a_sample_that_takes_workers_down_is_quarantined_and_the_run_goes_on(run, action, stage, fired):
    one = run(action, *SHORT, *TWO, "DATA_LOADER.TIMEOUT", 3.0, fault=f"{action}@sample=5").wait()
    assert (one.code, one.fired) == (0, fired), one.stderr
    assert quarantined(one) == [("faulty/train", "train_5.mp4", stage, 2)]
    assert one.final()["steps_done"] == 8
    assert left_over(one) == []


@pytest.mark.slow
@pytest.mark.parametrize(("action", "error"), [("raise", "RuntimeError: injected"), ("odd_raise", "Odd: 1")])
def test_a_bug_in_a_sample_ends_the_run_with_its_name(run, action, error):
    one = run(action, *SHORT, *TWO, fault=f"{action}@sample=5").wait()
    assert (one.code, one.fired) == (1, 1), one.stderr
    assert f"train_5.mp4): {error}" in one.stderr
    assert left_over(one) == []


@pytest.mark.slow
def test_spawned_workers_make_the_same_run_and_know_the_project(run, undisturbed, tmp_path):
    words = (*SHORT, *TWO, "DATA_LOADER.MP_CONTEXT", "spawn")
    one = run("spawn", *words, fault=f"kill@sample=5,once={tmp_path / 'mark'}", launcher=[sys.executable]).wait()
    assert (one.code, one.fired) == (0, 1), one.stderr
    assert same_run(one, undisturbed)


def test_workers_do_not_outlive_a_main_process_that_was_killed(run):
    """Not even one that is at a sample which hangs."""
    one = run("orphans", *SHORT, *TWO, fault="sleep@sample=5")
    end = time.monotonic() + PATIENCE
    while not one.fired:
        assert time.monotonic() < end
        time.sleep(0.05)
    before = len(left_over(one))
    os.kill(one.process.pid, signal.SIGKILL)
    while left_over(one) and time.monotonic() < end:
        time.sleep(0.1)
    assert before == 3
    assert left_over(one) == []


def damage(world: Path, names) -> None:
    for name in names:
        (world / f"videos/{name}.mp4").write_bytes(b"")


def verdict(run) -> str:
    """The one line that says why a run ended."""
    assert run.code == 2, run.stderr
    (line,) = [text for text in run.stderr.splitlines() if text.startswith("error: ")]
    return line


def test_a_training_set_without_a_good_video_is_an_error_at_once(run, own_world):
    damage(own_world, [f"train_{i}" for i in range(24)])
    one = run("all_bad", *SHORT, *TWO, "DATA.MAX_BAD_FRACTION", 1.0, data=own_world).wait()
    assert "faulty/train: 24 of 24 samples cannot be read, and among the last" in verdict(one)
    assert "empty file" in verdict(one)
    assert len(quarantined(one)) == 24
    assert left_over(one) == []


def ranks(run, name: str, *words, **options) -> list[Run]:
    return [one.wait() for one in shards(run, 2, name, *SHORT, *words, **options)]


def test_unreadable_samples_of_all_ranks_are_judged_together(run, own_world):
    """Two of 24, of which each rank meets one first: as one process, both ranks end once both are known."""
    damage(own_world, ["train_3", "train_17"])
    allowed = ranks(run, "allowed", "DATA.MAX_BAD_FRACTION", 0.09, data=own_world)
    assert [one.code for one in allowed] == [0, 0], allowed[0].stderr
    assert {row[:3] for row in quarantined(allowed[0])} == {("faulty/train", f"train_{i}.mp4", "open") for i in (3, 17)}
    over = ranks(run, "over", "DATA.MAX_BAD_FRACTION", 0.08, data=own_world)
    for one in over:
        assert "faulty/train: 2 of 24 samples cannot be read, more than DATA.MAX_BAD_FRACTION 0.08" in verdict(one)
    assert {row[:3] for row in quarantined(over[0])} == {row[:3] for row in quarantined(allowed[0])}


@pytest.mark.slow
def test_a_bad_video_gives_way_to_its_neighbour_and_more_end_the_run(run, own_world):
    damage(own_world, ["train_5", "val_3"])
    words = ("DATA.MAX_BAD_FRACTION", 0.2, "SOLVER.MAX_EPOCH", 2, "TRAIN.EVAL_PERIOD", 1)
    runs = [run(f"workers{n}", *words, "DATA_LOADER.NUM_WORKERS", n, data=own_world).wait() for n in (0, 2)]
    assert [one.code for one in runs] == [0, 0], runs[0].stderr
    assert same_run(*runs)
    bad = {("faulty/train", "train_5.mp4", "open", 2), ("faulty/val", "val_3.mp4", "open", 2)}
    assert [set(quarantined(one)) for one in runs] == [bad, bad]
    assert "(n=6/7" in (runs[0].out / "stdout.log").read_text()
    damage(own_world, ["train_9", "train_11"])
    over = run("over", *SHORT, *TWO, data=own_world).wait()
    assert "of 24 samples cannot be read, more than DATA.MAX_BAD_FRACTION 0.05 allows" in verdict(over)
    assert ".mp4 (empty file)" in verdict(over)
    assert len(quarantined(over)) >= 2
