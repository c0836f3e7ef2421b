"""Checkpoints that are damaged, hostile, of another model, or cannot be written: no run is lost, none goes on wrong."""

import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.faults.conftest import Run, same_bits, starting
from tests.faults.warm import _server
from videorl import checkpoint

TRAIN_ONLY = ("TEST.ENABLE", "False")
FIRST, SECOND, THIRD = (checkpoint.name_of(epochs) for epochs in (1, 2, 3))


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory) -> Run:
    """The undisturbed run: three epochs of four steps."""
    with starting(world, tmp_path_factory.mktemp("reference")) as start:
        done = start("out", *TRAIN_ONLY).wait()
    assert done.code == 0, done.stderr
    return done


@pytest.fixture
def begun(reference, tmp_path):
    """`begun(epochs)`: OUTPUT_DIR of a run that was stopped after so many epochs."""

    def copy(epochs: int) -> Path:
        out = shutil.copytree(reference.out, tmp_path / "out")
        (out / "stdout.log").unlink()
        for later in range(epochs + 1, 4):
            for suffix in (".pyth", ".json"):
                (out / "checkpoints" / checkpoint.name_of(later)).with_suffix(suffix).unlink()
        return out

    return copy


def content_of(run: Run) -> dict:
    """The newest checkpoint but for the settings, which name the folder."""
    return {k: v for k, v in run.final().items() if k != "cfg"}


def same_as(run: Run, reference: Run) -> bool:
    """Whether weights, optimizer and all, and the logged losses, agree bit for bit."""
    return same_bits(content_of(run), content_of(reference)) and run.losses() == reference.losses()


def files(out: Path) -> dict[str, bytes]:
    """Name to content of what stands in the folder of checkpoints."""
    return {file.name: file.read_bytes() for file in (out / "checkpoints").iterdir()}


def said(run: Run, words: str) -> list[str]:
    return [line for line in run.stdout.splitlines() if words in line]


def refused(run: Run, *words: str) -> None:
    """Asserts exit code 2 and one line on stderr with all of `words`."""
    assert run.code == 2, run.stderr
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: ")
    for word in words:
        assert word in run.stderr


# -------------------------------------------------------------------------------------------------- killed while saving


def save_for_ever(folder: Path, first: int, pipe) -> None:
    """Saves 4 MB again and again, with the number of the checkpoint in every value, and tells which are done."""
    for number in range(first, 99_999):
        state = {"number": number, "weights": torch.full((1024, 1024), float(number))}
        checkpoint.save(folder / checkpoint.name_of(number), state)
        checkpoint.prune(folder, 2, folder / checkpoint.name_of(number))
        pipe.send(number)


def told(pipe, seconds: float) -> int:
    """The last number that comes through the pipe within `seconds`."""
    number, end = 0, time.monotonic() + seconds
    while pipe.poll(max(0.0, end - time.monotonic())):
        try:
            number = pipe.recv()
        except EOFError:
            break
    return number


def test_killed_25_times_while_saving_the_newest_committed_always_loads(tmp_path):
    draw = random.Random(7)
    context = _server()
    left_half_written, last = 0, 0
    for _ in range(25):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(tmp_path, last + 1, theirs))
        process.start()
        theirs.close()
        done = ours.recv()  # at least one: only then is the process known to be at work
        done = max(done, told(ours, draw.uniform(0.0, 0.1)))
        process.kill()
        process.join()
        done = max(done, told(ours, 0.0))
        left_half_written += bool(list(tmp_path.glob("*.tmp")))
        checkpoint.sweep(tmp_path)
        state = checkpoint.read(checkpoint.newest(tmp_path))
        last = state["number"]
        assert last >= done, "a checkpoint that was committed is lost"
        assert (state["weights"] == last).all()
        assert not list(tmp_path.glob("*.tmp"))
    assert left_half_written >= 5, "the kills did not hit a save"


# -------------------------------------------------------------------------------------------------------------- damage


def flip(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def hole(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes(4096) + data[at + 4096 :]


DAMAGE = {
    "one bit": flip,
    "half": lambda data: data[: len(data) // 2],
    "hole of 4 kB": hole,
    "99 per cent": lambda data: data[: len(data) * 99 // 100],
    "last byte": lambda data: data[:-1],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
}


def damage(file: Path, kind: str) -> None:
    data = file.read_bytes()
    file.write_bytes(DAMAGE[kind](data))
    assert file.read_bytes() != data


@pytest.mark.parametrize(
    "kind", ["one bit", *(pytest.param(k, marks=pytest.mark.slow) for k in DAMAGE if k != "one bit")]
)
def test_a_damaged_newest_gives_way_to_the_one_before(reference, begun, run, kind):
    out = begun(2)
    damaged = out / "checkpoints" / SECOND
    damage(damaged, kind)
    (out / "checkpoints/checkpoint_epoch_00003.tmp").write_bytes(b"half")
    again = run("out", *TRAIN_ONLY).wait()
    assert again.code == 0, again.stderr
    assert again.stderr == ""
    (line,) = said(again, " is damaged (")
    assert str(damaged) in line
    assert said(again, "resumed from")[0].endswith(f"{FIRST}: 1 epochs and 0 steps done")
    assert same_as(again, reference)
    assert checkpoint.damage(damaged) == "", "the run has written it anew"
    assert not list((out / "checkpoints").glob("*.tmp"))


@pytest.mark.slow
def test_where_all_are_damaged_the_run_does_not_start_over(begun, run):
    out = begun(2)
    for name in (FIRST, SECOND):
        damage(out / "checkpoints" / name, "hole of 4 kB")
    before = files(out)
    refused(run("out", *TRAIN_ONLY).wait(), "every checkpoint in", "is damaged")
    assert files(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_a_damaged_file_that_is_named_is_an_error(begun, run, tmp_path, phase):
    named = begun(2).rename(tmp_path / "before") / "checkpoints" / SECOND
    damage(named, "one bit")
    only = TRAIN_ONLY if phase == "TRAIN" else ("TRAIN.ENABLE", "False")
    refused(
        run("out", *only, f"{phase}.CHECKPOINT_FILE_PATH", named).wait(),
        f"checkpoint {named} is damaged: its SHA-256 differs",
    )
    assert files(tmp_path / "out") == {}
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.slow
def test_the_test_phase_passes_over_a_damaged_best(begun, run):
    out = begun(3)
    damage(out / "checkpoints" / checkpoint.BEST, "half")
    tested = run("out", "TRAIN.ENABLE", "False").wait()
    assert tested.code == 0, tested.stderr
    assert said(tested, f"{checkpoint.BEST} is damaged")
    assert said(tested, f"{THIRD}: 100.0 % of the model's numbers loaded")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["newest", "named"])
def test_a_hostile_checkpoint_is_refused_and_not_run(begun, run, tmp_path, place):
    out, marker = begun(1), tmp_path / "ran"
    state = torch.load(out / "checkpoints" / FIRST, weights_only=True)
    state["optimizer_state"]["param_groups"][0]["extra"] = [Payload(marker)]
    hostile = out / "checkpoints" / checkpoint.name_of(9) if place == "newest" else tmp_path / "gift.pyth"
    checkpoint.save(hostile, state)  # with a commit mark that fits: whoever made it can hash, too
    settings = TRAIN_ONLY if place == "newest" else ("TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", hostile)
    done = run("out", *settings).wait()
    refused(done, str(hostile), "objects that could run code (posix.mkdir)")
    assert "weights_only" not in done.stderr
    assert not marker.exists()
    with pytest.raises(Exception, match="File exists"):
        [torch.load(hostile, weights_only=False) for _ in range(2)]
    assert marker.exists(), "the payload works where it is let in"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("MODEL.NUM_CLASSES", 5), ["2 of another shape: head.weight (4, 16) for (5, 16), head.bias (4,) for (5,);"]),
        pytest.param(("TINY.WIDTH", 8), ["another shape", "body.0.weight", "…; expected"], marks=pytest.mark.slow),
        pytest.param(("SOLVER.OPTIMIZING_METHOD", "sgd"), ["adamw", "sgd"], marks=pytest.mark.slow),
        pytest.param(("TRAIN.BATCH_SIZE", 4), ["6 videos a step, this run 4"], marks=pytest.mark.slow),
    ],
    ids=lambda v: str(v[0]) if isinstance(v, tuple) else "",
)
def test_a_checkpoint_of_another_run_is_refused(begun, run, settings, words):
    out = begun(2)
    before = files(out)
    refused(run("out", *TRAIN_ONLY, *settings).wait(), str(out / "checkpoints" / SECOND), *words)
    assert files(out) == before


def test_a_published_file_is_taken_as_weights_and_that_is_said_first(reference, run, tmp_path):
    published = tmp_path / "published.pyth"
    state = torch.load(reference.out / "checkpoints" / FIRST, weights_only=True)
    cfg = "MODEL: {MODEL_NAME: tiny}\nTINY: {WIDTH: 24}\nDATA: {STD: [0.3, 0.3, 0.3], NUM_FRAMES: 64}\n"
    torch.save({"epoch": 7, "model_state": state["model_state"], "cfg": cfg}, published)
    settings = ("TRAIN.CHECKPOINT_FILE_PATH", published, "SOLVER.MAX_EPOCH", 1, "TINY.WIDTH", 16)
    done = run("out", *TRAIN_ONLY, *settings).wait()
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.index("holds no run of this toolkit") < done.stdout.index("model tiny")
    assert said(done, f"taken from {published}, for nothing else says it: DATA.STD [0.3, 0.3, 0.3]")
    assert said(done, "TINY.WIDTH: the file has 24, this run 16")
    again = run("out", *TRAIN_ONLY, *settings, "SOLVER.MAX_EPOCH", 2).wait()
    assert again.code == 0, again.stderr
    assert said(again, "resumed from"), "its own run now"
    assert not said(again, "DATA.STD was"), "settings of the file stay those of the run"


@pytest.mark.slow
def test_weights_that_lack_a_part_of_the_model_are_not_tested(begun, run):
    out = begun(3)
    tested = run("out", "TRAIN.ENABLE", "False", "MODEL.NUM_CLASSES", 5).wait()
    refused(tested, "2 of another shape: head.weight (4, 16) for (5, 16)", "expected at least 100 %")
    assert not (out / "results.json").exists()


# ----------------------------------------------------------------------------------------------------------- disk full


def limit(run: Run, size: int) -> None:
    """From now on the kernel lets the run write no file larger than `size` bytes: as good as a full disk."""
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


TOO_SMALL = 40_000  # a checkpoint takes twice that, logs far less


@pytest.mark.parametrize("background", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_goes_on_past_a_checkpoint_that_cannot_be_written(reference, begun, run, background):
    out = begun(1)
    before = files(out)
    settings = ("TRAIN.BEST_METRIC", "", "TINY.SECONDS", 0.4, "TRAIN.ASYNC_CHECKPOINT", background)
    going = run("out", *TRAIN_ONLY, *settings)
    limit(going, TOO_SMALL)
    going.until("NOT written")
    at_miss = files(out)
    limit(going, resource.RLIM_INFINITY)
    going.wait()
    assert going.code == 0, going.stderr
    (line,) = said(going, "NOT written")
    assert f"{SECOND} was NOT written ([Errno 27] File too large), 1 in a row; older checkpoints stand" in line
    assert at_miss == before, "nothing new, and nothing old was lost"
    assert set(files(out)) == {*before, THIRD, THIRD.replace("pyth", "json")}
    final, wanted = content_of(going), content_of(reference)
    assert (final.pop("best")["value"], wanted.pop("best")["metric"]) == (None, "val/top1")  # BEST_METRIC was off
    assert same_bits(final, wanted)


@pytest.mark.slow
def test_three_misses_in_a_row_end_the_run_on_all_ranks(begun, run, tmp_path):
    out = begun(1)
    before = files(out)
    shards = [
        run(
            "out",
            *TRAIN_ONLY,
            *("TRAIN.CHECKPOINT_STEPS", 1, "TRAIN.BATCH_SIZE", 6),
            flags=("--init_method", f"file://{tmp_path}/store", "--num_shards", "2", "--shard_id", str(k)),
        )
        for k in range(2)
    ]
    limit(shards[0], TOO_SMALL)
    for shard in shards:
        refused(shard.wait(), "3 checkpoints in a row could not be written", "make room")
    assert len(said(shards[0], "NOT written")) == 3
    assert files(out) == before


@pytest.mark.slow
def test_a_run_whose_last_state_is_not_on_the_disk_does_not_end_well(begun, run):
    out = begun(2)
    before = files(out)
    going = run("out", *TRAIN_ONLY, "TRAIN.BEST_METRIC", "")
    limit(going, TOO_SMALL)
    refused(going.wait(), "the last checkpoint could not be written")
    assert files(out) == before


@pytest.mark.slow
def test_a_stopped_run_that_could_not_save_does_not_say_that_it_did(begun, run):
    out = begun(1)
    before = files(out)
    going = run("out", *TRAIN_ONLY, "TINY.SECONDS", 0.4)
    limit(going, TOO_SMALL)
    going.until("epoch 2/3 step 1/4")
    os.kill(going.process.pid, signal.SIGTERM)
    refused(going.wait(), "the last checkpoint could not be written")
    assert not (out / "PREEMPTED").exists()
    assert files(out) == before


@pytest.mark.parametrize("place", ["file", pytest.param("inside", marks=pytest.mark.slow), "read-only"])
def test_an_output_dir_that_cannot_be_written_is_an_error_before_any_work(run, tmp_path, place):
    out = tmp_path / "out"
    if place == "file":
        out.write_text("mine")
    elif place == "inside":
        out.mkdir()
        (out / "checkpoints").write_text("mine")
    folder = Path("/sys/videorl") if place == "read-only" else out  # where not even root may make a folder
    done = run("out", "OUTPUT_DIR", folder).wait()
    refused(done, f"OUTPUT_DIR {folder} cannot be written")
    assert "model tiny" not in done.stdout
    if place == "file":
        assert out.read_text() == "mine"


@pytest.mark.slow
def test_keeping_a_single_checkpoint_is_refused(run, tmp_path):
    refused(run("out", "TRAIN.KEEP_CHECKPOINTS", 1).wait(), "TRAIN.KEEP_CHECKPOINTS 1", "keep 2 or more")
    assert files(tmp_path / "out") == {}


# ---------------------------------------------------------------------------------------------------- in the background


@pytest.mark.slow
def test_saving_in_the_background_changes_no_bit_and_pruning_keeps_the_best(reference, run):
    settings = ("TRAIN.ASYNC_CHECKPOINT", "True", "TRAIN.CHECKPOINT_STEPS", 1, "TRAIN.KEEP_CHECKPOINTS", 2)
    stopped = run("out", *TRAIN_ONLY, *settings, "TINY.SECONDS", 0.2)
    stopped.until("epoch 2/3 step 2/4")
    os.kill(stopped.process.pid, signal.SIGTERM)
    stopped.wait()
    assert stopped.code == 75, stopped.stderr
    names = [n for n in files(stopped.out) if n.endswith(".pyth")]
    assert len(names) == 2
    assert all(checkpoint.damage(stopped.out / "checkpoints" / name) == "" for name in names)
    step = int((stopped.out / "PREEMPTED").read_text().split()[-1])
    assert max(names) == checkpoint.name_of(1, step - 4), "the last write was waited for"
    again = run("out", *TRAIN_ONLY, *settings).wait()
    assert again.code == 0, again.stderr
    assert same_as(again, reference)
    assert sorted(n for n in files(again.out) if n.endswith(".pyth")) == [
        checkpoint.BEST,
        checkpoint.name_of(2, 3),
        THIRD,
    ]


# ---------------------------------------------------------------------------------------------------------------- logs


@pytest.mark.slow
def test_logs_that_cannot_be_written_do_not_end_the_run(reference, run, tmp_path):
    out = tmp_path / "out"
    (out / "metrics.jsonl").mkdir(parents=True)
    for name in ("json_stats.log", "run.json", "report.html", "quarantine.jsonl"):
        (out / name).mkdir()
    (out / "tensorboard").write_text("a file where a folder should be")
    (out / "stdout.log").symlink_to("/dev/full")
    done = run("out", *TRAIN_ONLY, "TENSORBOARD.ENABLE", "True").wait()
    assert done.code == 0, done.stderr
    for sink in ("metrics.jsonl cannot be", "json_stats.log cannot be", "TensorBoard", "stdout.log cannot be"):
        assert len(said(done, sink)) == 1, sink
    for sink in ("run.json cannot be", "report.html cannot be"):
        assert said(done, sink), sink
    assert "Traceback" not in done.stdout + done.stderr
    assert same_bits(content_of(done), content_of(reference))


def test_results_that_cannot_be_written_are_an_error_of_one_line(run, tmp_path):
    (tmp_path / "out/results.json").mkdir(parents=True)
    refused(run("out", "TRAIN.ENABLE", "False").wait(), "results.json cannot be written (Is a directory): make room")
