"""A run that is killed at any moment and started again ends with the bits of a run that was not."""

import json
import shutil
import signal
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.faults.conftest import Run, same_bits, shards, starting

# All that a checkpoint must hold: batch norm, dropout, moving average, a learnable loss parameter, augmentation, MixUp,
# two micro-batches a step; 3 steps an epoch. The coupled loss runs the model twice: 3 forward passes a step of two.
FULL = (
    *(
        "TRAIN.BATCH_SIZE",
        "4",
        "TRAIN.GRAD_ACCU_NUM_BATCH",
        "2",
        "TRAIN.EVAL_PERIOD",
        "1",
        "TRAIN.CHECKPOINT_STEPS",
        "1",
    ),
    *("LOSSES.ce.NAME", "soft_cross_entropy", "LOSSES.nce.NAME", "infonce", "LOSSES.nce.LEARN_TEMPERATURE", "True"),
    *(
        "EMA.ENABLED",
        "True",
        "EMA.DECAY",
        "0.9",
        "AUG.ENABLE",
        "True",
        "AUG.AA_TYPE",
        "rand-m5-mstd0.5-inc1",
        "MIXUP.ENABLE",
        "True",
    ),
    *("TEST.ENABLE", "False", "TEST.BATCH_SIZE", "2", "SOLVER.MAX_EPOCH", "2"),
)
MOMENTS = {  # of the kill, and steps that were saved before
    "first pass of a step": ("step=4", 1),
    "between micro-batches": ("step=6", 1),
    "epoch end": ("step=10", 3),
    "evaluation": ("eval=2", 2),
}


def command(start, processes: int, name: str, *words, **options) -> list[Run]:
    """The runs of one job, ended."""
    runs = shards(start, processes, name, *words, **options) if processes > 1 else [start(name, *words, **options)]
    return [r.wait() for r in runs]


def read(run: Run) -> list[tuple[int, int]]:
    """(epoch, sample) of every training sample that was decoded; of one process in the order of the steps, 8 a step."""
    return [tuple(map(int, line.split())) for line in run.read_log.read_text().splitlines()]


def logged(run: Run) -> list[tuple[str, int]]:
    """Kind and step of each line of json_stats.log."""
    lines = (run.out / "json_stats.log").read_text().splitlines()
    rows = [json.loads(line.removeprefix("json_stats: ")) for line in lines]
    return [(row["_type"], row["step"]) for row in rows]


def content(run: Run) -> dict:
    """The newest checkpoint without the text of the config, which names the folder."""
    return {key: value for key, value in run.final().items() if key != "cfg"}


def files(run: Run) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (run.out / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def references(world, tmp_path_factory):
    """By number of processes: the finished run that was not disturbed."""
    made = {}

    def reference(processes: int) -> Run:
        if processes not in made:
            with starting(world, tmp_path_factory.mktemp("references")) as start:
                runs = command(start, processes, f"of{processes}", *FULL)
            assert [r.code for r in runs] == [0] * processes, runs[0].stderr
            made[processes] = runs[0]
        return made[processes]

    return reference


@pytest.fixture
def finished(references, tmp_path):
    """A copy of the finished run of one process."""
    shutil.copytree(references(1).out, tmp_path / "out")
    return tmp_path / "out"


FAST = {("between micro-batches", 1, 2), ("evaluation", 2, 0)}


@pytest.mark.parametrize(
    ("moment", "processes", "workers"),
    [
        pytest.param(m, p, w, marks=() if (m, p, w) in FAST else pytest.mark.slow)
        for m in MOMENTS
        for p in (1, 2)
        for w in (0, 2)
    ],
)
def test_killed_and_started_again_ends_with_the_same_bits(run, references, moment, processes, workers):
    reference, (where, saved) = references(processes), MOMENTS[moment]
    words = (*FULL, "DATA_LOADER.NUM_WORKERS", workers)
    killed = command(run, processes, "out", *words, fault=f"kill@rank={processes - 1},{where}")
    assert (killed[-1].fired, killed[-1].code) == (1, -signal.SIGKILL)
    assert all(r.code == 70 for r in killed[:-1])
    killed[0].read_log.unlink()
    again = command(run, processes, "out", *words)
    assert [r.code for r in again] == [0] * processes, again[0].stderr
    assert same_bits(content(again[0]), content(reference))
    assert again[0].losses() == reference.losses()
    assert logged(again[0]) == logged(reference)
    if workers == 0:  # those of a killed run live on for up to two seconds, and read
        assert sorted(read(again[0])) == sorted(read(references(1))[8 * saved :])


def test_an_evaluation_after_the_checkpoint_of_its_step_is_logged_once(run, references):
    """Told to stop after the last step of an epoch, then killed after its evaluation, before the next checkpoint."""
    words = (*FULL, "TRAIN.CHECKPOINT_STEPS", "0", "TRAIN.CHECKPOINT_PERIOD", "2", "TENSORBOARD.ENABLE", "True")
    stopped = command(run, 1, "out", *words, fault="term@step=9")[0]
    assert (stopped.code, stopped.final()["step_in_epoch"]) == (75, 3)
    killed = command(run, 1, "out", *words, fault="kill@step=1")[0]
    assert killed.code == -signal.SIGKILL
    assert ("val_epoch", 3) in logged(killed)
    again = command(run, 1, "out", *words)[0]
    assert again.code == 0, again.stderr
    assert logged(again) == logged(references(1))
    events = EventAccumulator(str(again.out / "tensorboard")).Reload()
    for tag, steps in {"Train/loss": [1, 2, 3, 4, 5, 6], "val/top1": [3, 6]}.items():
        assert [event.step for event in events.Scalars(tag)] == steps


def test_another_number_of_processes_goes_on_with_the_same_samples(run, references):
    killed = command(run, 1, "out", *FULL, fault="kill@step=5")[0]
    assert killed.code == -signal.SIGKILL
    killed.read_log.unlink()
    both = command(run, 2, "out", *FULL, "TRAIN.BATCH_SIZE", "4")
    assert [r.code for r in both] == [0, 0], both[0].stderr
    assert sorted(read(both[0])) == sorted(read(references(1))[8:])
    log = (both[0].out / "stdout.log").read_text()
    assert "resuming a run of 1 processes with 2: data order and augmentation stay exact" in log
    assert sorted(both[0].losses()) == [1, 2, 3, 4, 5, 6]


def test_another_step_size_is_refused(run, finished):
    before = {f.name: f.read_bytes() for f in (finished / "checkpoints").iterdir()}
    done = run("out", *FULL, "TRAIN.BATCH_SIZE", "2", "SOLVER.MAX_EPOCH", "3").wait()
    assert done.code == 2
    assert "has 8 videos a step, this run 4" in done.stderr
    assert files(done) == before


def test_a_finished_run_started_again_trains_nothing(run, finished):
    before = {f.name: f.read_bytes() for f in (finished / "checkpoints").iterdir()}
    metrics = (finished / "metrics.jsonl").read_text()
    done = run("out", *FULL).wait()
    assert done.code == 0
    assert not done.read_log.exists()
    assert files(done) == before
    assert (finished / "metrics.jsonl").read_text() == metrics


def test_other_settings_are_named_in_the_log(run, finished):
    done = run("out", *FULL, "SOLVER.MAX_EPOCH", "3", "SOLVER.WEIGHT_DECAY", "0.2").wait()
    assert done.code == 0
    log = (finished / "stdout.log").read_text()
    assert "resuming with another setting: SOLVER.WEIGHT_DECAY was 0.0001, is 0.2" in log
    assert sorted(done.losses()) == list(range(1, 10))


@pytest.mark.parametrize("change", ["a row more", "another order"])
def test_changed_annotations_are_refused(run, finished, own_world, change):
    before = {f.name: f.read_bytes() for f in (finished / "checkpoints").iterdir()}
    csv = own_world / "train.csv"
    lines = csv.read_text().splitlines()
    lines = [*lines, "videos/val_0.mp4 0"] if change == "a row more" else [*lines[1:], lines[0]]
    csv.write_text("\n".join(lines) + "\n")
    done = run("out", *FULL, "SOLVER.MAX_EPOCH", "3", data=own_world).wait()
    assert done.code == 2
    assert "was trained on other data" in done.stderr
    assert files(done) == before


# ------------------------------------------------------------------------------------------- the same curve, any launch

MVIT = (
    *("MODEL.MODEL_NAME", "MViT", "MODEL.DROPOUT_RATE", "0.0", "MVIT.DEPTH", "2", "MVIT.EMBED_DIM", "16"),
    *("MVIT.NUM_HEADS", "1", "MVIT.DROPPATH_RATE", "0.0", "MVIT.PATCH_KERNEL", "[3, 7, 7]"),
    *("MVIT.PATCH_STRIDE", "[2, 4, 4]", "MVIT.PATCH_PADDING", "[1, 3, 3]", "MVIT.POOL_KVQ_KERNEL", "[3, 3, 3]"),
    *("MVIT.DIM_MUL", "[[1, 2.0]]", "MVIT.HEAD_MUL", "[[1, 2.0]]", "MVIT.POOL_Q_STRIDE", "[[1, 1, 2, 2]]"),
    *("MVIT.POOL_KV_STRIDE_ADAPTIVE", "[1, 2, 2]", "MVIT.CLS_EMBED_ON", "False", "MVIT.REL_POS_SPATIAL", "True"),
    *("SOLVER.BASE_LR", "0.001", "TEST.ENABLE", "False", "SOLVER.MAX_EPOCH", "2"),
)


@pytest.mark.parametrize(
    "launch", ["file", pytest.param("tcp", marks=pytest.mark.slow), pytest.param("torchrun", marks=pytest.mark.slow)]
)
def test_two_processes_have_the_loss_curve_of_one(run, tmp_path, launch):
    one = run("one", *MVIT).wait()
    assert one.code == 0, one.stderr
    if launch == "torchrun":
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        runs = [run("two", *MVIT, launcher=torchrun).wait()]
    else:
        method = f"file://{tmp_path}/meet/here" if launch == "file" else ""
        runs = [r.wait() for r in shards(run, 2, "two", *MVIT, method=method)]
    assert [r.code for r in runs] == [0] * len(runs), runs[0].stderr
    assert len(one.losses()) == 8
    assert runs[0].losses() == pytest.approx(one.losses(), rel=1e-5)


def test_a_file_left_by_a_killed_run_is_no_obstacle(run, tmp_path):
    method = f"file://{tmp_path}/store"
    killed = [r.wait() for r in shards(run, 2, "out", *FULL, method=method, fault="kill@step=5")]
    assert [r.code for r in killed] == [-signal.SIGKILL] * 2
    again = [r.wait() for r in shards(run, 2, "out", *FULL, method=method)]
    assert [r.code for r in again] == [0, 0], again[0].stderr
