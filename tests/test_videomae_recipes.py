"""VideoMAE's shipped YAML files give the schedules, parameter groups, views and masks of the published recipes.

Figures: scripts/ of https://github.com/MCG-NJU/VideoMAE and https://github.com/deepglint/V-SWIFT.
"""

from pathlib import Path

import pytest
import torch

from videorl import config
from videorl.clip import masks
from videorl.engine import evaluate, optim
from videorl.registry import MODELS

CONFIGS = Path(__file__).parents[1] / "configs"
PRETRAIN = "SSv2/VIDEOMAE_VITB_16x2_PT.yaml"
FINETUNE = {"SSv2/VIDEOMAE_VITB_16x2_FT.yaml": (2, 3), "Kinetics/VIDEOMAE_VITB_16x4_FT.yaml": (5, 3)}
VIDEOS = {"SSv2": 168_913, "Kinetics": 240_436}
DEPTH = 12


def load(name: str, *overrides):
    return config.load([CONFIGS / name], overrides)


def groups(cfg) -> list[dict]:
    entry, values = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    with torch.device("meta"):
        return optim.build_optimizer(cfg, entry(config.spec(cfg), values=values), torch.nn.Module()).param_groups


@pytest.mark.parametrize(
    ("name", "videos", "clips", "warmup", "epochs", "highest", "last"),
    [
        (PRETRAIN, 2048, 2048, 40, 1200, 1e-3, 1e-5),
        ("SSv2/VIDEOMAE_VITB_16x2_FT.yaml", 384, 768, 5, 30, 7.5e-4, 1.5e-6),
        ("Kinetics/VIDEOMAE_VITB_16x4_FT.yaml", 384, 768, 5, 75, 7.5e-4, 1.5e-6),
    ],
)
def test_learning_rates(name, videos, clips, warmup, epochs, highest, last):
    cfg = load(name)
    assert cfg.TRAIN.BATCH_SIZE_SCOPE == "global"
    size = cfg.TRAIN.BATCH_SIZE * cfg.TRAIN.GRAD_ACCU_NUM_BATCH
    assert (size, size * config.spec(cfg).augment.copies) == (videos, clips)
    assert epochs == cfg.SOLVER.MAX_EPOCH
    steps = VIDEOS[name.split("/")[0]] // size
    factor = optim.lr_factor(cfg.SOLVER, cfg.NUM_SHARDS, clips)
    at = {k: optim.lr_at(cfg.SOLVER, k / steps, steps, factor) for k in range(epochs * steps)}
    rise = warmup * steps
    assert at[0] == 0.0
    assert at[1] == pytest.approx(highest / (rise - 1))
    assert at[rise - 2] < at[rise - 1] == pytest.approx(highest)
    assert at[rise] == max(at.values()) == pytest.approx(highest)
    assert at[epochs * steps - 1] == min(list(at.values())[rise:]) == pytest.approx(last, rel=1e-3)


def test_optimizer_of_pre_training():
    found = groups(load(PRETRAIN))
    assert sorted((group["weight_decay"], group["lr_scale"]) for group in found) == [(0.0, 1.0), (0.05, 1.0)]
    assert {group["betas"] for group in found} == {(0.9, 0.95)}


@pytest.mark.parametrize("name", FINETUNE)
def test_optimizer_of_fine_tuning(name):
    found = groups(load(name))
    expected = [(decay, 0.75**k) for decay in (0.0, 0.05) for k in reversed(range(DEPTH + 2))]
    assert sorted((group["weight_decay"], group["lr_scale"]) for group in found) == expected
    assert len(found) == 28
    assert {group["betas"] for group in found} == {(0.9, 0.999)}
    scales = {name: group["lr_scale"] for group in found for name in group["names"]}
    assert scales["patch_embed.proj.weight"] == 0.75 ** (DEPTH + 1)
    assert scales["blocks.11.mlp.fc2.weight"] == 0.75
    assert scales["head.projection.weight"] == scales["fc_norm.weight"] == 1.0


@pytest.mark.parametrize("name", FINETUNE)
def test_views_of_the_test(name, tmp_path):
    (tmp_path / "test.csv").write_text("a.mp4 0\n")
    cfg = load(name, "DATA.PATH_TO_DATA_DIR", str(tmp_path))
    (test,) = evaluate.evaluations(cfg, at_test=True).values()
    assert (test.views.clips, test.views.crops) == FINETUNE[name]
    assert test.dataset.sampling == ("sparse" if "SSv2" in name else "dense")


@pytest.mark.parametrize("name", [PRETRAIN, *FINETUNE])
def test_left_and_right_are_kept_where_they_are_classes(name):
    assert config.spec(load(name)).augment.flip == ("Kinetics" in name)


def test_masks_of_pre_training():
    """196 places of 8 tubelets: V-SWIFT keeps int(196 * (1 - 0.9)) = 19 of them, the same in every tubelet."""
    spec = config.spec(load(PRETRAIN))
    assert (spec.masking.kind, spec.masking.ratio, spec.clip.frames, spec.clip.rate) == ("tube", 0.9, 16, 2)
    assert masks.lengths(spec) == (19 * 8, (196 - 19) * 8) == (152, 1416)
