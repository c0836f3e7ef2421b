"""DATA.LOCAL_SHARDS: two machines with lists of 5 and 9 videos of their own make the same number of steps."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.engine import shard_ranks
from tests.faults.conftest import Run, free_port, same_bits, write_set
from tests.faults.warm import together
from videorl.engine.build import seed_of
from videorl.engine.evaluate import Evaluation
from videorl.loading.batches import Plan, Quota, Weighted
from videorl.registry import UserError

SIZES = (5, 9)


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> list[Path]:
    """A folder for each machine with `data`: lists of training videos of its own, the same validation and test sets."""
    root = tmp_path_factory.mktemp("machines")
    write_set(root / "shared", {"val": 4, "test": 4})
    folders = [root / f"machine{k}" for k in range(2)]
    for folder, size in zip(folders, SIZES):
        shutil.copytree(root / "shared", folder / "data")
        write_set(folder / "data", {"train": size})
    return folders


# ------------------------------------------------------------------------------------------- the training set of ranks


@pytest.fixture(scope="module")
def found(machines, tmp_path_factory) -> dict:
    """(processes a machine, rank) -> name of case -> what the rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    five, nine = (machine / "data" for machine in machines)
    scope = ("TRAIN.BATCH_SIZE_SCOPE", "machine", "TRAIN.BATCH_SIZE")
    cases = {
        "own": ((five, five, nine, nine), "TRAIN.BATCH_SIZE_SCOPE", "global", "TRAIN.BATCH_SIZE", 4),
        "same": ((nine, nine, nine, nine), *scope, 2),
        "mixed up": ((five, five, nine, five), *scope, 2),
    }
    together(shard_ranks.run_rank, *((r, folder, cases) for r in range(4)))
    load = lambda file: torch.load(folder / file, weights_only=True)  # noqa: E731
    return {(n, r): load(f"local{n}_rank{r}.pt") for n in shard_ranks.LAYOUTS for r in range(2 * n)}


def of_machine(found: dict, local: int, machine: int, case: str, epoch: int) -> list[list[int]]:
    """Samples of each step of a machine's processes."""
    ranks = [found[local, machine * local + k][case] for k in range(local)]
    steps, size = ranks[0]["steps"], len(ranks[0]["index"][epoch]) // ranks[0]["steps"]
    return [[i for r in ranks for i in r["index"][epoch][k * size : (k + 1) * size]] for k in range(steps)]


@pytest.mark.parametrize("local", shard_ranks.LAYOUTS)
def test_all_machines_make_the_steps_of_the_longest_list(found, local):
    """9 videos of each machine: 4 steps of 2."""
    for (processes, rank), cases in found.items():
        if processes == local:
            assert (cases["own"]["steps"], cases["own"]["step_size"]) == (4, 4)
            machine = rank // local
            assert cases["own"]["readers"] == (machine * local, (machine + 1) * local)
            facts = cases["own"]["facts"]
            assert facts["samples"] == 14
            assert [(m["samples"], m["again"]) for m in facts["machines"]] == [(5, 3), (9, 0)]
            assert facts == found[local, 0]["own"]["facts"]


@pytest.mark.parametrize("local", shard_ranks.LAYOUTS)
def test_a_short_list_begins_again_after_its_last_video(found, local):
    for epoch in range(2):
        short = [i for step in of_machine(found, local, 0, "own", epoch) for i in step]
        assert set(short) == set(range(5))
        assert Counter(Counter(short).values()) == {2: 3, 1: 2}
        long = [i for step in of_machine(found, local, 1, "own", epoch) for i in step]
        assert len(set(long)) == len(long) == 8
    assert of_machine(found, local, 0, "own", 0) != of_machine(found, local, 0, "own", 1)


def test_processes_of_a_machine_share_its_steps(found):
    """As without machines: the same samples whatever the number of processes with an equal step."""
    for machine in range(2):
        for epoch in range(2):
            one, two = (of_machine(found, local, machine, "own", epoch) for local in (1, 2))
            assert [sorted(step) for step in one] == [sorted(step) for step in two]


@pytest.mark.parametrize("local", shard_ranks.LAYOUTS)
def test_machines_do_not_draw_alike(found, local):
    """The same files on both machines: another order, and another clip of the sample with the same number."""
    assert of_machine(found, local, 0, "same", 0) != of_machine(found, local, 1, "same", 0)
    clips = [{}, {}]
    for rank in range(2 * local):
        one = found[local, rank]["same"]
        clips[rank // local] |= dict(zip(one["index"][0], one["videos"][0]))
    both = clips[0].keys() & clips[1].keys()
    assert len(both) >= 7
    assert not any(torch.equal(clips[0][i], clips[1][i]) for i in both)
    assert seed_of(7, 0) == 7
    assert len({seed_of(seed, machine) for seed in range(20) for machine in range(20)}) == 400


def test_processes_of_a_machine_must_read_the_same_lists(found):
    errors = {found[2, rank]["mixed up"]["error"] for rank in range(4)}
    assert errors == {
        "the processes of machine 1 read different annotations of faulty/train; on one machine all must read the same"
        " files"
    }


# -------------------------------------------------------------------------------------------------------------- batches


def test_weighted_batches_of_machines():
    plans = [Plan(2, 2, 0, 1, machines=2, least=9) for _ in SIZES]
    made = [Weighted({"a": s - 2, "b": 2}, p, 3, weights=[1.0, 1.0]) for s, p in zip(SIZES, plans)]
    assert [b.steps for b in made] == [2, 2]
    asked = Weighted({"a": 3, "b": 2}, plans[0], 3, weights=[1.0, 1.0], epoch_length=80)
    assert asked.steps == 10, "80 videos of both machines, 8 a step"


def test_quota_is_refused():
    with pytest.raises(UserError, match="BATCHES.NAME quota: with DATA.LOCAL_SHARDS choose shuffled or weighted"):
        Quota({"a": 9}, Plan(2, 1, machines=2, least=9), 3, quota=[4])


def test_an_evaluation_on_training_videos_is_refused(machines, tmp_path):
    words = ("EVALS.fit.NAME", "views", "EVALS.fit.DATASET", "faulty", "EVALS.fit.SPLIT", "train")
    data = machines[0] / "data"
    assert len(Evaluation(shard_ranks.settings(data, tmp_path, *words), "fit").dataset) == 5
    with pytest.raises(UserError, match="EVALS.fit.SPLIT train: with DATA.LOCAL_SHARDS each machine has training"):
        Evaluation(shard_ranks.settings(data, tmp_path, "DATA.LOCAL_SHARDS", True, *words), "fit")


# ---------------------------------------------------------------------------------------------------- the whole command


def both(machines: list[Path], out: Path, *overrides, fault: str = "") -> list[Run]:
    """`run_net.py` on each machine, in a folder of its own: the configs are equal, what `data` holds is not."""
    words = ("DATA.LOCAL_SHARDS", "True", "TRAIN.BATCH_SIZE_SCOPE", "machine", "TRAIN.BATCH_SIZE", "2", *overrides)
    flags = ("--num_shards", "2", "--init_method", f"tcp://127.0.0.1:{free_port()}", "--shard_id")
    started = [
        Run(
            *(Path("data"), out, *words),
            fault=fault,
            flags=(*flags, str(k)),
            cwd=machine,
            env={"VIDEORL_READ_LOG": str(out.parent / f"{out.name}.read{k}")},
        )
        for k, machine in enumerate(machines)
    ]
    try:
        return [one.wait() for one in started]
    finally:
        for one in started:
            one.kill()


def read_by(out: Path, machine: int) -> dict[int, list[int]]:
    """Epoch -> samples read by a machine, in order."""
    epochs: dict[int, list[int]] = {}
    for line in (out.parent / f"{out.name}.read{machine}").read_text().splitlines():
        epoch, sample = map(int, line.split())
        epochs.setdefault(epoch, []).append(sample)
    return epochs


@pytest.fixture(scope="module")
def trained(machines, tmp_path_factory) -> Run:
    """Rank 0 of an uninterrupted run of 2 epochs; decoded videos are kept in `cache` of each machine's folder."""
    out = tmp_path_factory.mktemp("trained") / "out"
    runs = both(machines, out, "SOLVER.MAX_EPOCH", 2, "SOLVER.BASE_LR_BATCH", 8, "DATA.CACHE_FOLDER", "cache")
    assert [one.code for one in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    return runs[0]


def test_a_run_of_two_machines(trained):
    facts = json.loads((trained.out / "run.json").read_text())
    data = facts["data"]["faulty/train"]
    assert data["samples"] == sum(data["classes"]["faulty"].values()) == 14
    assert [(m["samples"], m["again"]) for m in data["machines"]] == [(5, 3), (9, 0)]
    assert facts["data"]["faulty/val"]["samples"] == 4
    assert trained.final()["data"] == data["fingerprint"]
    assert trained.final()["steps_done"] == 8
    for line in ("machine 0: 5 videos of its own, 3 come again", "machine 1: 9 videos of its own, 0 come again"):
        assert line in trained.stdout
    assert "training set faulty: 14 videos; micro-batch 2 x 2 processes x 1 micro-batches = 4" in trained.stdout
    first, second = (read_by(trained.out, k) for k in range(2))
    assert sorted(first) == sorted(second) == [0, 1]
    assert all(sorted(samples[:5]) == list(range(5)) and len(samples) == 8 for samples in first.values())
    assert all(len(set(samples)) == len(samples) == 8 for samples in second.values())


def test_the_learning_rate_for_the_clips_of_a_step_is_said(trained):
    assert "learning rate: base 0.01 x 4 clips a step / 8 = 0.005" in trained.stdout
    batch = json.loads((trained.out / "run.json").read_text())["batch"]
    assert batch["base_learning_rate"] == 0.01
    assert batch["clips_per_step"] == 4
    assert batch["learning_rate"] == pytest.approx(0.005)
    rows = [json.loads(line) for line in (trained.out / "metrics.jsonl").read_text().splitlines()]
    assert next(row["lr"] for row in rows if row["kind"] == "train") == pytest.approx(0.005)


def test_decoded_videos_are_kept_and_counted_in_the_log(machines, trained):
    assert "cache holds 5 decoded videos (DATA.CACHE_GB 32); training has 5" in trained.stdout
    kept = [len(list((machine / "cache").glob("*.npy"))) for machine in machines]
    assert kept[0] + kept[1] == 5 + 8 + 4 + 4 or kept[0] + kept[1] == 5 + 9 + 4 + 4, "each test video on one machine"


@pytest.mark.slow
def test_an_interrupted_run_goes_on_exactly_and_on_the_same_lists_alone(machines, trained, tmp_path):
    """Neither that nor that nothing is cached changes a bit."""
    words = ("SOLVER.MAX_EPOCH", 2, "SOLVER.BASE_LR_BATCH", 8)
    stopped = both(machines, tmp_path / "out", *words, fault=f"term@rank=1,step=6,once={tmp_path}/once")
    assert [one.code for one in stopped] == [75, 75]
    changed = [machines[0], shutil.copytree(machines[1], tmp_path / "changed")]
    lines = (changed[1] / "data/train.csv").read_text().splitlines(keepends=True)
    (changed[1] / "data/train.csv").write_text("".join(lines[::-1]))
    refused = both(changed, tmp_path / "out", *words)
    assert [one.code for one in refused] == [2, 2]
    assert "was trained on other data" in refused[0].stderr
    resumed = both(machines, tmp_path / "out", *words)
    assert [one.code for one in resumed] == [0, 0]
    for key in ("model_state", "optimizer_state"):
        assert same_bits(resumed[0].final()[key], trained.final()[key])


@pytest.mark.slow
def test_each_machine_judges_its_own_videos(machines, tmp_path):
    """1 of 5 is more than 15 %, 1 of 14 and 1 of 9 are not."""
    own = [shutil.copytree(machine, tmp_path / machine.name) for machine in machines]
    for machine, code in ((1, 0), (0, 2)):
        file = own[machine] / "data/videos/train_3.mp4"
        file.write_bytes(file.read_bytes()[:100])
        runs = both(own, tmp_path / f"out{machine}", "DATA.MAX_BAD_FRACTION", 0.15)
        assert [one.code for one in runs] == [code, code]
    assert "faulty/train: 1 of 5 samples cannot be read, more than DATA.MAX_BAD_FRACTION 0.15" in runs[0].stderr
