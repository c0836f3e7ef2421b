"""Settings of several data sets that would train or test something else than meant: each is one line."""

import re

import pytest
import torch

from videorl import config, convert
from videorl.engine import build, evaluate
from videorl.registry import UserError

TWO = [
    "DATASETS.a.NAME",
    "kinetics",
    "DATASETS.a.NUM_CLASSES",
    "3",
    "DATASETS.b.NAME",
    "ssv2",
    "DATASETS.b.NUM_CLASSES",
    "4",
]
HEADS = ["LOSSES.heads.NAME", "multi_head"]
SMALL = [
    "MVIT.DEPTH",
    "1",
    "MVIT.EMBED_DIM",
    "8",
    "DATA.TRAIN_CROP_SIZE",
    "32",
    "DATA.TEST_CROP_SIZE",
    "32",
    "NUM_GPUS",
    "0",
]


def load(*words):
    return config.load([], [*map(str, words)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TRAIN.DATASET", "all"], "all means every entry of DATASETS, which is empty"),
        ([*TWO, "TRAIN.DATASET", "mit"], "TRAIN.DATASET mit has no head: heads are those of DATASETS (a, b)"),
        (
            ["DATASETS.all.NAME", "kinetics", "DATASETS.all.NUM_CLASSES", 2],
            "DATASETS.all: what EVALS calls all data sets has that name",
        ),
        (["DATASETS.a/b.NAME", "kinetics", "DATASETS.a/b.NUM_CLASSES", 2], "DATASETS.a/b: expected a name"),
    ],
)
def test_what_load_refuses(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        load(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TWO, "TRAIN.DATASET", "all"], "this loss is for one label space, DATASETS has a, b"),
        (HEADS, "needs two or more entries of DATASETS"),
        (
            [*TWO, *HEADS, "TRAIN.DATASET", "all", "MULTI.EXPANDER", 8],
            "MULTI.EXPANDER is on, but no loss of LOSSES uses it",
        ),
        ([*TWO, "TRAIN.DATASET", "all", "LOSSES.s.NAME", "sparsity"], "set MULTI.PROJECTION True"),
        ([*TWO, *HEADS, "TRAIN.DATASET", "all", "LOSSES.heads.WEIGHTS", "[1]"], "expected one for each of a, b"),
    ],
)
def test_what_losses_refuse(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        build.objective(load(*words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MULTI.HEAD_HIDDEN", 8], "are for two or more entries of DATASETS"),
        ([*TWO, "TRAIN.DATASET", "a", "MULTI.HEAD_HIDDEN", -3], "MULTI.HEAD_HIDDEN -3"),
        ([*TWO, "TRAIN.DATASET", "a", "DATASETS.a.NUM_CLASSES", 0], "DATASETS.a.NUM_CLASSES 0"),
        (
            ["DATASETS.train.NAME", "mit", "DATASETS.train.NUM_CLASSES", 2, *TWO, "TRAIN.DATASET", "a"],
            "cannot be called train",
        ),
    ],
)
def test_what_heads_refuse(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        build.model(load(*SMALL, *words))


@pytest.fixture
def sets(tmp_path):
    """Annotations of two data sets; the words that name them."""
    words = list(TWO)
    for name, classes in (("a", 3), ("b", 4)):
        (tmp_path / name).mkdir()
        for split in ("train", "val", "test"):
            (tmp_path / name / f"{split}.csv").write_text("".join(f"{i}.mp4 {i % classes}\n" for i in range(8)))
        words += [f"DATASETS.{name}.ANNOTATIONS", tmp_path / name]
    return words


def test_training_one_of_several_reaches_its_own_head(sets):
    cfg = load(*SMALL, *sets, *HEADS, "TRAIN.DATASET", "b", "TRAIN.BATCH_SIZE", 4)
    data = build.train_data(cfg).dataset
    assert (len(data), data.spaces, data.columns_of("b")) == (8, ["a", "b"], slice(3, 7))


def test_an_error_of_an_entry_names_it(sets, tmp_path):
    (tmp_path / "b/train.csv").write_text("x.mp4 9\n")
    with pytest.raises(UserError, match=r"^DATASETS\.b: .*train\.csv:1: label 9 is not in 0 … 3"):
        build.dataset(load(*sets, *HEADS, "TRAIN.DATASET", "all"), "all", "train")


def test_views_are_those_of_the_entry_then_of_test_and_an_evaluation_s_own_win(sets):
    words = [*SMALL, *sets, *HEADS, "TRAIN.DATASET", "all", "DATASETS.b.TEST_CLIPS", 2, "DATASETS.b.TEST_CROPS", 1]
    words += ["TEST.NUM_ENSEMBLE_VIEWS", 5, "DATASETS.b.NAME", "mit"]  # dense clips: views that differ

    def views(*more) -> dict:
        made = evaluate.evaluations(load(*words, *more), at_test=True)
        return {name: (e.views.clips, e.views.crops) for name, e in made.items()}

    assert views("TEST.DATASET", "all") == {"test_a": (5, 3), "test_b": (2, 1)}
    assert views("TEST.DATASET", "b") == {"test": (2, 1)}
    assert views("TEST.DATASET", "all", "EVALS.test.CLIPS", 7) == {"test_a": (7, 3), "test_b": (7, 1)}


def test_two_evaluations_of_one_name_are_refused(sets):
    words = ["EVALS.test_b.NAME", "views", "EVALS.test_b.DATASET", "b", "TEST.DATASET", "all"]
    with pytest.raises(UserError, match="two evaluations are called test_b"):
        evaluate.evaluations(load(*SMALL, *sets, *HEADS, "TRAIN.DATASET", "all", *words), at_test=True)


def test_a_file_with_tensors_that_the_model_has_no_place_for_is_not_tested(monkeypatch):
    words = [*SMALL, "MVIT.USE_ABS_POS", False, "MVIT.REL_POS_SPATIAL"]
    other, model = (build.model(load(*words, on)) for on in (True, False))
    with pytest.raises(UserError, match="rel_pos_.* other settings"):
        convert.load(model, {"model_state": other.state_dict()}, "x.pyth", testing=True)


def test_a_multitrain_file_needs_multitrain_s_variant():
    words = [*SMALL, "MVIT.DIM_MUL_IN_ATT", True, "MVIT.DIM_MUL", "[[0, 2.0]]"]
    model = build.model(load(*words))
    weights = {n.replace("blocks.0.proj.", "blocks.0.proj_max_pool."): v for n, v in model.state_dict().items()}
    with pytest.raises(UserError, match="MVIT.SKIP_PROJ_RAW True"):
        convert.load(model, {"model_state": weights}, "x.pyth", testing=True)
    right = build.model(load(*words, "MVIT.SKIP_PROJ_RAW", True))
    convert.load(right, {"model_state": weights}, "x.pyth", testing=True)
    assert torch.equal(right.state_dict()["blocks.0.proj.weight"], weights["blocks.0.proj_max_pool.weight"])
