"""DATA.RESIZE_ON_DEVICE through the engine: the same training but for rounding, whoever loads it, or a refusal."""

from pathlib import Path

import pytest
import torch

from videorl import config, dist
from videorl.engine import build
from videorl.engine.step import backward, to_device
from videorl.registry import DATASETS, Entry, UserError
from videorl.spec import Views
from videorl.toy import scenes

ROOT = Path(__file__).parents[2]
MIXED = {"MIXUP.ENABLE": True, "MODEL.LOSS_FUNC": "soft_cross_entropy", "VIT.EMBED_DIM": 16, "VIT.DEPTH": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "set"
    scenes.make_set(out, kind=scenes.SMALL, counts={"train": 8, "val": 2, "test": 2})
    return out


def load(folder, resize: str, changes: dict | None = None, cfg: str = "videomae_pt"):
    settings = {
        "DATA.PATH_TO_DATA_DIR": folder, "DATA.PATH_PREFIX": folder, "DATA.RESIZE_ON_DEVICE": resize,
        "TRAIN.BATCH_SIZE": 4, "TRAIN.GRAD_ACCU_NUM_BATCH": 2, "DATA_LOADER.NUM_WORKERS": 0, "NUM_GPUS": 0,
        "VIDEOMAE.EMBED_DIM": 32, "VIDEOMAE.DEPTH": 1, "VIDEOMAE.DECODER_DIM": 32, "VIDEOMAE.DECODER_DEPTH": 1,
        "DATA.RANDOM_FLIP": True, **(changes or {}),
    }  # fmt: skip
    return config.load([ROOT / f"configs/toy/{cfg}.yaml"], [str(word) for pair in settings.items() for word in pair])


def first_step(cfg) -> tuple[list[dict], dict[str, float]]:
    """The micro-batches of the first step as they lie on the device, and its losses."""
    data, clip, precision = build.train_data(cfg), config.spec(cfg).clip, build.precision(cfg)
    batches = next(data.epoch(0))
    data.loader.close()
    assert ("regions" in batches[0]) == (cfg.DATA.RESIZE_ON_DEVICE == "always")
    model, objective = build.model(cfg), build.objective(cfg)
    values = backward(model, objective, batches, clip=clip, precision=precision, seed=0, step=0)
    return [to_device(batch, precision.device, clip) for batch in batches], values


def test_masked_clips_train_as_those_of_workers(folder):
    (found, losses), (expected, ready_losses) = (first_step(load(folder, how)) for how in ("always", "never"))
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert (one["pixels"].int() - other["pixels"].int()).abs().max() <= 1
        assert all(torch.equal(one[name], other[name]) for name in one.keys() - {"pixels"})
    assert losses == pytest.approx(ready_losses, rel=1e-4)  # some pixels are a grey level off


def test_mixed_clips_train_as_those_of_workers(folder):
    losses = [first_step(load(folder, how, MIXED, "videomae_ft"))[1]["loss"] for how in ("always", "never")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_workers_change_no_bit(folder):
    cfgs = [load(folder, "always", {"DATA_LOADER.NUM_WORKERS": count}) for count in (0, 2)]
    (found, losses), (expected, other_losses) = map(first_step, cfgs)
    assert losses == other_losses
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_evaluations_get_clips_that_are_ready(folder):
    data = build.dataset(load(folder, "always"), "kinetics", "train", Views(1, 1))
    assert "pixels" in data[0][0]


@pytest.mark.parametrize(
    ("on", "device", "changes", "expected"),
    [
        ("auto", "cpu", {}, False),
        ("auto", "cuda", {}, True),
        ("auto", "cuda", {"AUG.AA_TYPE": "rand-m7"}, False),
        ("auto", "cuda", {"AUG.COLOR_JITTER": 0.4}, False),
        ("auto", "cuda", {"AUG.RE_PROB": 0.1}, False),
        ("auto", "cuda", {"AUG.RE_PROB": 0.1, "AUG.ENABLE": False}, True),
        ("never", "cuda", {}, False),
        ("always", "cpu", {}, True),
    ],
)
def test_who_resizes(folder, monkeypatch, on, device, changes, expected):
    monkeypatch.setattr(dist, "device", lambda: torch.device(device))
    assert build.resizes_on_device(on, config.spec(load(folder, on, changes)).augment) is expected


class Ready:
    """A data set whose workers make its clips."""

    def __init__(self, spec, split):
        pass


def test_data_sets_whose_workers_make_the_clips_are_refused(folder, monkeypatch):
    monkeypatch.setitem(DATASETS._entries, "kinetics", Entry("kinetics", Ready, ""))
    with pytest.raises(UserError, match="^DATA.RESIZE_ON_DEVICE always: the workers make the clips of this data set"):
        build.dataset(load(folder, "always"), "kinetics", "train")
    assert isinstance(build.dataset(load(folder, "auto"), "kinetics", "train"), Ready)


def test_recipes_that_workers_must_augment_are_refused(folder):
    cfg = load(folder, "always", {"AUG.AA_TYPE": "rand-m7", "AUG.RE_PROB": 0.1})
    said = r"^DATA\.RESIZE_ON_DEVICE always: .* found AUG\.AA_TYPE rand-m7, AUG\.RE_PROB 0\.1, .* auto or never"
    with pytest.raises(UserError, match=said):
        build.train_data(cfg)
