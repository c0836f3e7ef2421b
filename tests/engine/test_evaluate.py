"""Each sample counted exactly once, on any number of ranks, and never another in its place."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine import eval_ranks
from tests.faults.conftest import write_set
from tests.faults.warm import together
from videorl import dist, report
from videorl.engine import build
from videorl.engine.evaluate import Evaluation, evaluations, readable
from videorl.engine.step import Precision, normalise
from videorl.engine.test import test as run_test
from videorl.registry import UserError

BAD = (1, 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Seven test videos, and the same with two that cannot be read."""
    good = tmp_path_factory.mktemp("good")
    write_set(good, {"test": 7})
    bad = shutil.copytree(good, tmp_path_factory.mktemp("bad"), dirs_exist_ok=True)
    spoil(bad, BAD)
    return {"good": good, "bad": bad}


def spoil(folder: Path, numbers) -> None:
    for i in numbers:
        file = folder / f"videos/test_{i}.mp4"
        file.write_bytes(file.read_bytes()[:100])


@pytest.fixture(scope="module")
def ranks(data, tmp_path_factory) -> Path:
    """Folder with what 1, 2 and 3 ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    strict = ("DATA.MAX_BAD_FRACTION", 0.2)
    cases = {"good": (data["good"],), "bad": (data["bad"],), "strict": (data["bad"], *strict)}
    together(eval_ranks.run_rank, *((r, folder, cases) for r in range(3)))
    return folder


@pytest.fixture
def evaluation(data, tmp_path):
    """`evaluation("good", *overrides)` and the model to evaluate."""

    def build_it(which: str, *overrides) -> tuple[Evaluation, torch.nn.Module]:
        cfg = eval_ranks.settings(data.get(which, which), tmp_path, *overrides)
        return Evaluation(cfg, "test"), build.model(cfg)

    return build_it


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


def found(ranks: Path, world: int, case: str, rank: int = 0) -> dict:
    return torch.load(ranks / f"world{world}_rank{rank}.pt", weights_only=True)[case]


def same_arrays(a: Path, b: Path) -> bool:
    one, two = np.load(a), np.load(b)
    return one.files == two.files and all(one[k].tobytes() == two[k].tobytes() for k in one.files)


# ---------------------------------------------------------------------------------------------------------- views


def test_views_that_would_be_the_same_are_read_once_and_said(evaluation, said):
    """Uniform clips of ten times three views: three differ."""
    views = ("TEST.DATASET", "ssv2", "TEST.NUM_ENSEMBLE_VIEWS", 10, "TEST.NUM_SPATIAL_CROPS")
    test, model = evaluation("good", *views, 3)
    assert test.eval.protocol.startswith("3 views per video")
    assert "all 10 along time would be the same: 1 is read" in said.text
    found = test.run(model, Precision(torch.device("cpu")))
    assert (found["n"], found["of"]) == (7, 7)
    assert len(test.dataset[0]) == 3


# ---------------------------------------------------------------------------------------------------- not finite


def test_weights_that_are_not_finite_give_no_metric(evaluation, said):
    test, model = evaluation("good")
    with torch.no_grad():
        model.head.bias[1] = float("inf")
    assert test.run(model, Precision(torch.device("cpu"))) == {"n": 0, "of": 7}
    assert "test: no metric: weights that are not finite: head.bias" in said.text
    assert readable({"n": 0, "of": 7}) == "no metric (n=0/7, 0.0 %)"


@pytest.mark.parametrize("sample", [3, None])
def test_scores_that_are_not_finite_give_no_metric(evaluation, said, tmp_path, sample):
    """One sample without scores has no rank among classes, so a metric of all does not exist."""
    test, model = evaluation("good")
    step = test.eval.step

    def spoilt(model, batch):
        rows = step(model, batch)
        rows["scores"][(batch["index"] == sample) if sample else slice(None)] = float("nan")
        return rows

    test.eval.step = spoilt
    assert test.run(model, Precision(torch.device("cpu")), tmp_path / "rows.npz") == {"n": 7, "of": 7}
    of = "1 of 7" if sample else "7 of 7"
    assert f"no metric: scores of {of} videos are not finite, first of " in said.text
    assert f"test_{sample or 0}.mp4" in said.text
    assert not test.per_sample
    assert not (tmp_path / "rows.npz").exists()


# --------------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("case", ["good", "bad"])
@pytest.mark.parametrize("world", [2, 3])
def test_the_same_bits_for_any_number_of_ranks(ranks, world, case):
    expected = found(ranks, 1, case)["metrics"]
    for rank in range(world):
        assert found(ranks, world, case, rank)["metrics"] == expected
    assert same_arrays(ranks / f"{case}_{world}.npz", ranks / f"{case}_1.npz")


@pytest.mark.parametrize("world", eval_ranks.WORLDS)
def test_unreadable_samples_are_counted_and_not_replaced(ranks, data, world):
    metrics = found(ranks, world, "bad")["metrics"]
    assert (metrics["n"], metrics["of"]) == (5, 7)
    good = found(ranks, world, "good")["metrics"]
    assert (good["n"], good["of"]) == (7, 7)
    rows = np.load(ranks / f"bad_{world}.npz")
    assert rows["index"].tolist() == [0, 2, 3, 4, 6]
    assert [Path(p).name for p in rows["paths"]] == [f"test_{i}.mp4" for i in (0, 2, 3, 4, 6)]
    named = sorted(path for rank in range(world) for path in found(ranks, world, "bad", rank)["bad"])
    assert named == [str(data["bad"] / f"videos/test_{i}.mp4") for i in BAD]


@pytest.mark.parametrize("world", eval_ranks.WORLDS)
def test_too_many_bad_samples_are_an_error_for_any_number_of_ranks(ranks, world):
    """Of 3 ranks none has met more than 1 of 7, less than the fifth that is allowed."""
    for rank in range(world):
        error = found(ranks, world, "strict", rank)["error"]
        assert "2 of 7 samples cannot be read, more than DATA.MAX_BAD_FRACTION 0.2 allows" in error
        assert all(f"test_{i}.mp4" in error for i in BAD)


def test_ranks_share_the_batches_of_one(evaluation, monkeypatch):
    one, _ = evaluation("good")
    whole = [job.samples for job in one._jobs()]
    assert whole == [[0, 1, 2, 3], [4, 5, 6]], "8 clips in a batch, 2 views of each video"
    for world in range(2, 5):
        monkeypatch.setattr(dist, "world_size", lambda world=world: world)
        shares = []
        for rank in range(world):
            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            shares += [job.samples for job in one._jobs()]
        assert sorted(shares) == whole


# ------------------------------------------------------------------------------------------------------------- numbers


def test_predictions_equal_a_slow_reference(evaluation, tmp_path):
    one, model = evaluation("good")
    metrics = one.run(model, build.precision(one.cfg), tmp_path / "p.npz")
    rows = np.load(tmp_path / "p.npz")
    model.eval()
    labels, sums = [], []
    for i in range(7):
        total = np.zeros(4)
        for item in one.dataset[i]:
            with torch.no_grad():
                logits = model(normalise(item["video"][None], one.spec.clip))["logits"][0].double().numpy()
            total += np.exp(logits) / np.exp(logits).sum()
        sums.append(total)
        labels.append(i % 4)
    np.testing.assert_allclose(rows["scores"], sums, rtol=1e-5)
    assert rows["scores"].sum(1) == pytest.approx([2.0] * 7), "two views"
    assert rows["labels"].tolist() == labels
    assert rows["index"].tolist() == list(range(7))
    right = [int(np.argmax(s)) == label for s, label in zip(sums, labels)]
    assert metrics["top1"] == pytest.approx(np.mean(right))


def test_clips_are_the_same_every_time_and_with_workers(evaluation, tmp_path):
    for name, workers in (("a", 0), ("b", 0), ("c", 2)):
        one, model = evaluation("bad", "DATA_LOADER.NUM_WORKERS", workers)
        one.run(model, build.precision(one.cfg), tmp_path / f"{name}.npz")
    assert same_arrays(tmp_path / "a.npz", tmp_path / "b.npz")
    assert same_arrays(tmp_path / "a.npz", tmp_path / "c.npz")


def test_training_mode_is_put_back(evaluation):
    one, model = evaluation("good")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for mode in (True, False):
        model.train(mode)
        one.run(model, build.precision(one.cfg))
        assert model.training is mode
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --------------------------------------------------------------------------------------------------------------- views


def rows_of(cells) -> dict[str, np.ndarray]:
    cells = np.array(cells)
    return {"index": cells[:, 0], "view": cells[:, 1], "scores": 10 * cells[:, 0] + cells[:, 1]}


ALL = [(i, k) for i in range(7) for k in range(2)]


def test_rows_come_out_in_order(evaluation):
    one, _ = evaluation("good")
    shuffled = np.random.default_rng(0).permutation(ALL)
    assert one._checked(rows_of(shuffled), range(7), 2)["scores"].tolist() == [10 * i + k for i, k in ALL]
    without = [cell for cell in ALL if cell[0] not in (2, 3)]
    assert one._checked(rows_of(without), [0, 1, 4, 5, 6], 2)["index"].tolist() == [i for i, _ in without]


@pytest.mark.parametrize(
    ("cells", "bad", "words"),
    [
        ([c for c in ALL if c != (3, 1)], set(), r"view 1 of sample 3 \(.*test_3.mp4\) is missing"),
        ([*ALL, (2, 0)], set(), r"view 0 of sample 2 \(.*test_2.mp4\) was counted twice"),
        ([(2, 0) if c == (3, 1) else c for c in ALL], set(), r"view 1 of sample 3 \(.*test_3.mp4\) is missing"),
        (ALL, {4}, r"view 0 of sample 4 \(.*test_4.mp4\) was counted but not asked for"),
        ([*ALL, (6, 2)], set(), r"view 2 of sample 6 \(.*test_6.mp4\) was counted but not asked for"),
    ],
)
def test_a_view_that_is_missing_or_doubled_is_named(evaluation, cells, bad, words):
    one, _ = evaluation("good")
    with pytest.raises(RuntimeError, match=words):
        one._checked(rows_of(cells), sorted({*range(7)} - bad), 2)


def test_an_eval_that_loses_a_row_is_found_out(evaluation, monkeypatch):
    one, model = evaluation("good")
    step = one.eval.step
    monkeypatch.setattr(one.eval, "step", lambda model, batch: {k: v[:-1] for k, v in step(model, batch).items()})
    with pytest.raises(RuntimeError, match=r"test: view 1 of sample 3 \(.*test_3.mp4\) is missing"):
        one.run(model, build.precision(one.cfg))


# ------------------------------------------------------------------------------------------------------------ bad data


@pytest.mark.parametrize(
    ("allowed", "words"),
    [(1.0, "none of the 7 samples could be read"), (0.05, r"\d of 7 samples|none of the 7 samples")],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_where_all_is_bad_the_evaluation_ends(data, evaluation, tmp_path, allowed, words, workers):
    folder = shutil.copytree(data["good"], tmp_path / "all bad")
    spoil(folder, range(7))
    one, model = evaluation(folder, "DATA.MAX_BAD_FRACTION", allowed, "DATA_LOADER.NUM_WORKERS", workers)
    with pytest.raises(UserError, match=words) as error:
        one.run(model, build.precision(one.cfg))
    assert "test_0.mp4" in str(error.value)


def test_coverage_stands_in_log_results_and_report(data, tmp_path, said):
    cfg = eval_ranks.settings(data["bad"], tmp_path)
    run_test(cfg, evaluations(cfg, at_test=True), lambda doing: None)
    assert "(n=5/7, 71.4 %)" in said.text
    results = json.loads((tmp_path / "results.json").read_text())["evals"]["test"]
    assert (results["n"], results["of"]) == (5, 7)
    quarantined = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(Path(row["path"]).name for row in quarantined) == [f"test_{i}.mp4" for i in BAD]
    assert "n=5/7" in report.write(tmp_path).read_text()


def test_how_results_read():
    assert readable({"top1": 0.5, "loss": 12.345, "n": 7, "of": 7}) == "top1 50.0 %, loss 12.35 (n=7/7)"
    assert readable({"map": 1.0, "n": 93, "of": 100}) == "map 100.0 % (n=93/100, 93.0 %)"
