"""Processes that die, freeze, disagree or are told to stop: the run ends soon, says why, and goes on from there."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.faults.conftest import ROOT, free_port, same_bits, shards, starting
from tests.faults.warm import PATIENCE
from videorl import checkpoint, dist

SHORT = ("TEST.ENABLE", "False", "SOLVER.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_STEPS", "1", "TRAIN.KEEP_CHECKPOINTS", "0")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def errors(run) -> list[str]:
    """The lines that say why a run ended."""
    return [line for line in run.stderr.splitlines() if line.startswith("error: ")]


def newest(out) -> dict:
    """The newest checkpoint, which must be whole."""
    return checkpoint.read(checkpoint.newest(out / "checkpoints"))


def without_config(state: dict) -> dict:
    return {key: value for key, value in state.items() if key != "cfg"}


# -------------------------------------------------------------------------------------------------- a process is lost


@pytest.mark.parametrize(
    ("action", "rank", "code"),
    [
        ("kill", 1, -signal.SIGKILL),
        pytest.param("kill", 0, -signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("segv", 1, -signal.SIGSEGV, marks=pytest.mark.slow),
        pytest.param("exit", 1, 0, marks=pytest.mark.slow),
        ("raise", 1, 1),
    ],
)
def test_when_a_rank_is_lost_the_others_end_and_name_it(run, action, rank, code):
    both = [r.wait() for r in shards(run, 2, "out", *SHORT, fault=f"{action}@rank={rank},step=4")]
    lost, other = both[rank], both[1 - rank]
    assert (lost.fired, lost.code, other.code) == (1, code, 70)
    (line,) = errors(other)
    assert f"rank {rank} {'ended (RuntimeError: injected)' if action == 'raise' else 'is dead or frozen'}" in line
    assert "Traceback" not in other.stderr
    assert newest(lost.out)["steps_done"] == 3


def test_a_frozen_rank_is_named_within_the_timeout(run):
    first, frozen = shards(run, 2, "out", *SHORT, "DIST.TIMEOUT", "10", fault="stop@rank=1,step=4")
    first.wait()
    assert (first.fired, first.code) == (1, 70)
    (line,) = errors(first)
    assert re.search(r"rank 0 made no progress for \d+ s", line)
    assert "rank 1 is dead or frozen" in line
    assert "most recent call first" in first.stderr  # the stacks
    os.kill(frozen.process.pid, signal.SIGCONT)
    assert frozen.wait().code == 70
    assert newest(first.out)["steps_done"] == 3


@pytest.mark.slow
def test_a_run_that_is_suspended_as_a_whole_goes_on(run, undisturbed):
    """For longer than all its limits: rank 0 waits for rank 1, and a worker is in the middle of a sample."""
    words = ("DIST.TIMEOUT", "20", "DATA_LOADER.TIMEOUT", "20", "DATA_LOADER.NUM_WORKERS", "1", "TINY.SECONDS", "0.5")
    both = shards(run, 2, "out", *SHORT, *words)
    both[0].until("step 1/4")
    for one in reversed(both):
        os.killpg(one.process.pid, signal.SIGSTOP)
        time.sleep(1.0)
    time.sleep(20 + dist.LEAVE + 2)
    for one in both:
        os.killpg(one.process.pid, signal.SIGCONT)
    assert [r.wait().code for r in both] == [0, 0], both[0].stderr + both[1].stderr
    assert not (both[0].out / "quarantine.jsonl").exists()
    assert both[0].losses() == undisturbed[1]


@pytest.mark.slow
def test_torchrun_restarts_and_ends_with_the_bits_of_an_undisturbed_run(run, tmp_path):
    for_reference = [r.wait() for r in shards(run, 2, "reference", *SHORT)]
    assert [r.code for r in for_reference] == [0, 0]
    wanted, losses = without_config(for_reference[0].final()), for_reference[0].losses()
    for attempt in range(3):
        once = tmp_path / f"once{attempt}"
        fault = f"kill@rank={attempt % 2},step=3,once={once}"
        torn = run(f"torn{attempt}", *SHORT, launcher=(*TORCHRUN, "--max-restarts", "2"), fault=fault).wait()
        assert (torn.fired, torn.code) == (1, 0), torn.stderr[-3000:]
        assert same_bits(without_config(torn.final()), {**wanted, "threads": torn.final()["threads"]})
        assert torn.losses() == losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "code", "line"),
    [
        ("kill", 70, "error: rank 1 was killed by SIGKILL; the others were stopped"),
        ("raise", 70, "error: rank 1 raised the error above; the others were stopped"),
        ("wait", 75, ""),
    ],
)
def test_processes_of_one_machine_end_together(tmp_path, action, code, line):
    """The launch for several GPUs, which this test does without."""
    words = [sys.executable, str(ROOT / "tests/faults/spawned.py"), str(tmp_path), action]
    parent = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    assert wait_for(lambda: all(f.exists() and f.read_text() for f in files), parent)
    if action == "wait":
        parent.terminate()
    stderr = parent.communicate(timeout=PATIENCE)[1]
    assert parent.returncode == code, stderr
    assert line in stderr.splitlines() or not line
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


# ------------------------------------------------------------------------------------------------------ wrong launches


def test_a_port_in_use_is_named(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(flags=("--num_shards", "2", "--shard_id", "0", "--init_method", f"tcp://127.0.0.1:{port}")).wait()
    assert done.code == 2
    assert f"port {port} is in use" in errors(done)[0]


def test_shards_that_count_differently_are_told_so(run):
    method = f"tcp://127.0.0.1:{free_port()}"
    flags = [("--num_shards", str(n), "--shard_id", str(k), "--init_method", method) for k, n in enumerate((2, 3))]
    both = [r.wait() for r in [run("out", *SHORT, flags=words) for words in flags]]
    assert [r.code for r in both] == [2, 2]
    for one in both:
        assert "num_shards is" in errors(one)[0]
    assert not (both[0].out / "checkpoints").exists()


@pytest.mark.parametrize(
    ("number", "scheme"),
    [(1, "tcp"), pytest.param(0, "tcp", marks=pytest.mark.slow), pytest.param(1, "file", marks=pytest.mark.slow)],
)
def test_two_shards_with_one_id_are_told_so(run, tmp_path, number, scheme):
    method = f"tcp://127.0.0.1:{free_port()}" if scheme == "tcp" else f"file://{tmp_path}/store"
    words = ("--num_shards", "3" if number else "2", "--init_method", method, "--shard_id")
    numbers = sorted({0, number}) + [number]
    all_ = [run("out", *SHORT, "DIST.TIMEOUT", "8", "TRAIN.BATCH_SIZE", "6", flags=(*words, str(k))) for k in numbers]
    ended = [r.wait() for r in all_]
    assert [r.code for r in ended] == [2] * len(ended)
    assert any("--shard_id" in errors(r)[0] for r in ended)
    assert not (ended[0].out / "checkpoints").exists()


@pytest.mark.parametrize(("key", "values"), [("SOLVER.BASE_LR", ("0.01", "0.03")), ("RNG_SEED", ("1", "2"))])
def test_ranks_with_other_settings_are_told_the_key(run, key, values):
    method = f"tcp://127.0.0.1:{free_port()}"
    words = ("--num_shards", "2", "--init_method", method, "--shard_id")
    both = [r.wait() for r in [run("out", *SHORT, key, v, flags=(*words, str(k))) for k, v in enumerate(values)]]
    assert [r.code for r in both] == [2, 2]
    for one in both:
        assert f"{key} is" in errors(one)[0]


def with_reversed(world, folder, split: str):
    """A copy of the videos with the lines of one csv in another order."""
    folder.mkdir(parents=True)
    for file in world.iterdir():
        (folder / file.name).symlink_to(file)
    lines = (world / f"{split}.csv").read_text().splitlines()
    (folder / f"{split}.csv").unlink()
    (folder / f"{split}.csv").write_text("\n".join(reversed(lines)))
    return folder


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train", SHORT),
        pytest.param("val", SHORT, marks=pytest.mark.slow),
        ("test", ("TRAIN.EVAL_PERIOD", "0")),
        ("test", ("TRAIN.ENABLE", "False")),
    ],
)
def test_ranks_with_other_annotations_are_told_the_data_set(run, own_world, tmp_path, split, words):
    other = with_reversed(own_world, tmp_path / "other/world", split)
    meet = ("--num_shards", "2", "--init_method", f"tcp://127.0.0.1:{free_port()}")
    runs = [
        run("out", *words, "DATA.ALLOW_OUTSIDE_ROOT", "True", data="world", flags=(*meet, "--shard_id", k), cwd=folder)
        for k, folder in (("0", own_world.parent), ("1", other.parent))
    ]
    both = [r.wait() for r in runs]
    assert [r.code for r in both] == [2, 2]
    for one in both:
        assert f"annotations of faulty/{split} is '" in errors(one)[0]
    assert not list((both[0].out / "checkpoints").iterdir())


def test_run_json_lists_the_annotations_that_were_used(run):
    hashes = lambda out: {k: v["fingerprint"] for k, v in json.loads((out / "run.json").read_text())["data"].items()}  # noqa: E731
    only_test = ("TRAIN.ENABLE", "False")
    alone = run("alone", *only_test).wait()
    assert alone.code == 0, alone.stderr
    assert list(hashes(alone.out)) == ["faulty/test"]
    assert json.loads((alone.out / "run.json").read_text())["config"]
    trained = run("out", *SHORT).wait()
    assert sorted(hashes(trained.out)) == ["faulty/train", "faulty/val"]
    before = json.loads((trained.out / "run.json").read_text())
    assert run("out", *only_test).wait().code == 0
    after = json.loads((trained.out / "run.json").read_text())
    assert hashes(trained.out) == hashes(alone.out) | {k: v["fingerprint"] for k, v in before["data"].items()}
    assert after["config"] == before["config"], "that of the training of the weights"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_parameter_without_gradient_is_named(run, processes):
    """With several processes torch would go on for a step with gradients that are not averaged."""
    all_ = (
        shards(run, 2, "out", *SHORT, "TINY.SPARE", "True")
        if processes == 2
        else [run("out", *SHORT, "TINY.SPARE", "True")]
    )
    ended = [r.wait() for r in all_]
    assert [r.code for r in ended] == [2, 2] if processes == 2 else [0]
    said = errors(ended[0])[0] if processes == 2 else (ended[0].out / "stdout.log").read_text()
    assert "spare.weight, spare.bias" in said


# ---------------------------------------------------------------------------------------------------- told to stop


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """Final checkpoint and losses of a run of two processes."""
    with starting(world, tmp_path_factory.mktemp("undisturbed")) as start:
        both = [r.wait() for r in shards(start, 2, "out", *SHORT)]
    assert [r.code for r in both] == [0, 0]
    return without_config(both[0].final()), both[0].losses()


def test_a_signal_to_one_rank_stops_all_and_the_same_command_goes_on(run, undisturbed):
    both = [r.wait() for r in shards(run, 2, "out", *SHORT, "TRAIN.CHECKPOINT_STEPS", "0", fault="term@rank=1,step=3")]
    assert [r.code for r in both] == [75, 75]
    assert both[0].fired == 1
    assert "SIGTERM after step 3" in (both[0].out / "PREEMPTED").read_text()
    assert newest(both[0].out)["steps_done"] == 3
    again = [r.wait() for r in shards(run, 2, "out", *SHORT)]
    assert [r.code for r in again] == [0, 0]
    assert not (again[0].out / "PREEMPTED").exists()
    assert same_bits(without_config(again[0].final()), undisturbed[0])
    assert again[0].losses() == undisturbed[1]


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_all_ranks_with_everything_saved(run):
    torn = run("out", *SHORT, "TINY.SECONDS", "0.5", launcher=TORCHRUN)
    torn.until("step 1/4")
    torn.process.terminate()
    torn.wait()
    assert torn.code == 1  # torchrun's own; hence the file
    assert "SIGTERM after step" in (torn.out / "PREEMPTED").read_text()
    assert 0 < newest(torn.out)["steps_done"] < 8


def test_signals_while_saving_leave_a_whole_checkpoint(run):
    """A second SIGTERM changes nothing; a SIGINT gives up the checkpoint being written and no other."""
    one = run("out", *SHORT, "TINY.WIDTH", "20000", "TINY.DROPOUT", "0.0")
    folder = one.out / "checkpoints"
    assert wait_for(lambda: list(folder.glob("*.pyth")) and list(folder.glob("*.tmp")), one.process)
    for _ in range(20):
        os.kill(one.process.pid, signal.SIGTERM)
        time.sleep(0.01)
    one.wait()
    assert one.code == 75
    steps = newest(one.out)["steps_done"]
    assert 0 < steps < 8
    again = run("out", *SHORT, "TINY.WIDTH", "20000", "TINY.DROPOUT", "0.0")
    again.until("resumed from")
    if wait_for(lambda: list(folder.glob("*.tmp")), again.process):
        os.kill(again.process.pid, signal.SIGINT)
    assert again.wait().code not in (0, 2) or again.final()["steps_done"] == 8  # it may have been the last one
    assert newest(one.out)["steps_done"] >= steps


def wait_for(condition, process) -> bool:
    """Waits until there is what `process` should bring about; False where it ended before that was seen."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None:
            return bool(condition())
        assert time.monotonic() < end
        time.sleep(0.002)
    return True


@pytest.mark.slow
def test_a_process_that_hangs_in_c_is_ended_soon_after_a_signal(run):
    stuck = run("out", *SHORT, fault="hang@step=3")
    assert wait_for(lambda: stuck.fired, stuck.process)
    os.kill(stuck.process.pid, signal.SIGTERM)
    stuck.wait()
    assert stuck.code == 70
    assert "was told to stop 20 s ago" in errors(stuck)[0]
    assert "pthread_mutex_lock" in stuck.stderr or "_hang" in stuck.stderr
    assert newest(stuck.out)["steps_done"] == 2


def test_a_signal_while_testing_ends_the_run(run):
    done = run("out", "SOLVER.MAX_EPOCH", "1", "TRAIN.EVAL_PERIOD", "0", fault="term@eval=1").wait()
    assert (done.fired, done.code) == (1, 75)
    assert "SIGTERM at evaluation test" in (done.out / "PREEMPTED").read_text()


@pytest.mark.parametrize(
    ("rank", "batch", "size"),
    [(0, 1, 2), pytest.param(1, 1, 2, marks=pytest.mark.slow), pytest.param(1, 1, 8, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_rank_while_testing_ends_all_with_one_code(run, rank, batch, size):
    """At 2 clips a batch the other rank has batches left; at 8 each has one, and the other waits for the result."""
    words = ("TRAIN.ENABLE", "False", "TEST.BATCH_SIZE", size)
    both = [r.wait() for r in shards(run, 2, "out", *words, fault=f"term@rank={rank},eval={batch}")]
    assert both[0].fired == 1
    assert [r.code for r in both] == [75, 75], [r.stderr for r in both]
    assert "SIGTERM at evaluation test" in (both[0].out / "PREEMPTED").read_text()
    again = [r.wait() for r in shards(run, 2, "out", *words)]
    assert [r.code for r in again] == [0, 0]
    assert not (again[0].out / "PREEMPTED").exists()


# ---------------------------------------------------------------------------------------------------------- one folder


def test_a_second_run_in_one_folder_is_refused_and_a_dead_one_is_not_waited_for(run):
    first = run("out", *SHORT, "TINY.SECONDS", "0.3")
    first.until("step 1/4")
    second = run("out", *SHORT).wait()
    assert second.code == 2
    assert f"in use by process {first.process.pid} on {socket.gethostname()}" in errors(second)[0]
    os.kill(first.process.pid, signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    assert run("out", *SHORT).wait().code == 0


def test_all_shards_are_told_that_the_folder_is_in_use(run):
    first = run("out", *SHORT, "TINY.SECONDS", "0.3")
    first.until("step 1/4")
    both = [r.wait() for r in shards(run, 2, "out", *SHORT)]
    assert [r.code for r in both] == [2, 2]
    for one in both:
        assert "in use by process" in errors(one)[0]
    assert first.wait().code == 0
