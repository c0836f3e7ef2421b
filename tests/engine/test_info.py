"""Parameters and multiply-adds: the published tables to the unit, and fvcore itself on small models."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from videorl import config
from videorl.cli import flops as tool
from videorl.engine import info
from videorl.registry import MODELS

ROOT = Path(__file__).parents[2]
SHARED = ["DATA.NUM_FRAMES", "16", "DATA.TRAIN_CROP_SIZE", "224", "DATA.TEST_CROP_SIZE", "224"]


def settings(**keys) -> list[str]:
    return [word for key, value in keys.items() for word in (key.replace("__", "."), str(value))]


def pretraining(size: str, decoder_depth: int, **mask):
    words = settings(
        MODEL__MODEL_NAME="VideoMAE", VIDEOMAE__SIZE=size, VIDEOMAE__DECODER_DEPTH=decoder_depth, MASK__RATIO=0.9,
        **{f"MASK__{k}": v for k, v in mask.items()},
    )  # fmt: skip
    return config.load([], SHARED + words)


def finetuning(size: str, classes: int):
    words = settings(MODEL__MODEL_NAME="ViT", VIT__SIZE=size, MODEL__NUM_CLASSES=classes)
    return config.load([], SHARED + words)


@pytest.mark.parametrize(
    ("size", "depth", "parameters", "macs"),
    [
        ("S", 8, 25_808_064, 17.928786),
        ("B", 8, 101_307_264, 53.433148),
        ("L", 8, 330_389_504, 110.404645),
        ("H", 8, 658_266_880, 161.550969),
        ("g", 8, 1_039_676_648, 300.227030),
        ("S", 4, 24_029_376, 11.365766),
        ("B", 4, 94_210_944, 34.758043),
        ("L", 4, 317_782_016, 80.572002),
        ("H", 4, 645_659_392, 131.718326),
        ("g", 4, 1_026_306_560, 255.675133),
    ],
)
def test_published_table_of_pretraining(size, depth, parameters, macs):
    """fvcore's figures of the published models (V-SWIFT), in G to the last digit."""
    found = info.model_info(pretraining(size, depth))
    assert found.parts[0].parameters == parameters
    assert round(found.published / 1e9, 6) == macs


@pytest.mark.parametrize(
    ("depth", "decoder", "macs"),
    [
        (4, "all", 35.481919),
        (8, "all", 54.157025),
        (8, "running_cell", 35.304757),
        (4, "running_cell", 25.871161),
    ],
)
def test_published_figures_of_videomae_and_v2(depth, decoder, macs):
    """They keep 160 tokens where V-SWIFT keeps 152."""
    found = info.model_info(pretraining("B", depth, ROUNDING="mask", DECODER=decoder))
    assert found.inputs["visible"] == (1, 160)
    assert round(found.published / 1e9, 6) == macs


@pytest.mark.parametrize(
    ("size", "classes", "parameters", "macs"),
    [
        ("S", 174, 21_946_926, 56.950),
        ("B", 174, 86_361_006, 180.489),
        ("L", 400, 304_270_736, 597.218),
        ("H", 400, 632_119_440, 1191.636),
        ("g", 400, 1_012_174_352, 2543.945),
    ],
)
def test_published_figures_of_finetuning(size, classes, parameters, macs):
    found = info.model_info(finetuning(size, classes))
    assert found.parts[0].parameters == parameters
    assert round(found.published / 1e9, 3) == macs
    assert found.hidden == 0


class Answers(nn.Module):
    """A model that gives its tensors as a tuple, which is what fvcore can trace."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return tuple(self.model(*inputs).values())


def by_fvcore(model: nn.Module, *inputs) -> int:
    """Multiply-adds by fvcore, which knows no fused attention."""
    from fvcore.nn import FlopCountAnalysis

    def attention(inputs, _outputs):
        (b, h, n, d), (_, _, m, _) = (value.type().sizes() for value in inputs[:2])
        return 2 * b * h * n * m * d

    analysis = FlopCountAnalysis(Answers(model.eval()), inputs).unsupported_ops_warnings(False)
    return int(analysis.set_op_handle("aten::scaled_dot_product_attention", attention).total())


SMALL = settings(DATA__NUM_FRAMES=4, DATA__TRAIN_CROP_SIZE=32, DATA__TEST_CROP_SIZE=32, MODEL__PATCH_SIZE=[2, 8, 8])


def small(name: str, **keys):
    sizes = {f"{name.upper()}__{k}": v for k, v in {"EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 3}.items()}
    return config.load([], SMALL + settings(MODEL__MODEL_NAME=name, **sizes, **keys))


def built(cfg) -> nn.Module:
    entry, values = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    return entry(config.spec(cfg), values=values)


def test_a_small_vit_equals_fvcore():
    cfg = small("ViT", MODEL__NUM_CLASSES=5)
    assert info.model_info(cfg).published == by_fvcore(built(cfg), torch.zeros(1, 3, 4, 32, 32))


def test_a_small_videomae_equals_fvcore_but_for_the_tokens_it_does_not_embed():
    decoder = {"VIDEOMAE__DECODER_DIM": 12, "VIDEOMAE__DECODER_DEPTH": 1, "VIDEOMAE__DECODER_HEADS": 2}
    cfg = small("VideoMAE", MASK__RATIO=0.75, **decoder)
    found = info.model_info(cfg)
    given = torch.zeros(1, 4, 3, 32, 32), torch.arange(8)[None], torch.arange(8, 32)[None]
    assert found.published - found.hidden == by_fvcore(built(cfg), *given)
    assert found.hidden == 24 * 24 * (3 * 2 * 8 * 8)  # tokens, width, values of a patch


# A plain ViT, which is all that MaskMViT can be.
PLAIN = {"MVIT__PATCH_KERNEL": [2, 16, 16], "MVIT__PATCH_STRIDE": [2, 16, 16], "MVIT__PATCH_PADDING": [0, 0, 0]}


COUNTED = ["MViT", "MaskMViT", "S3D", "TimeSformer", "ViT", "VideoMAE"]


@pytest.mark.parametrize("name", COUNTED)
def test_parts_add_up_and_parameters_are_those_of_the_model(name):
    masked = {"MASK__RATIO": 0.9} if name in ("MaskMViT", "VideoMAE") else {}
    own = PLAIN if name == "MaskMViT" else {}
    cfg = config.load([], [*SHARED, *settings(MODEL__MODEL_NAME=name, **masked, **own)])
    found = info.model_info(cfg, depth=2)
    with torch.device("meta"):
        model = built(cfg)
    assert found.parts[0].parameters == sum(p.numel() for p in model.parameters())
    assert [p.name for p in found.parts if p.name.count(".") == 0] == ["", *(n for n, _ in model.named_children())]
    by_name = {part.name: part for part in found.parts}
    for part in found.parts:
        inside = [p for p in found.parts if p.name.rpartition(".")[0] == part.name and p.name]
        if part.name.count(".") == 0 and inside:
            assert sum(p.macs for p in inside) <= part.macs
    assert all(by_name[p.name.rpartition(".")[0]].macs >= p.macs for p in found.parts if p.name)


def test_every_registered_model_is_covered():
    config.registry.discover()
    ours = {name for name in MODELS if MODELS[name].build.__module__.startswith("videorl.")}
    # These read features, or captions of any length: the multiply-adds of a clip say little of them.
    others = {"DualEncoder", "Narrator", "VideoCLIP", "VideoCLIPFrames"}
    assert ours == {*COUNTED, *others}, "add it to the test above"


def test_attention_is_counted():
    """Products of queries and keys and of weights and values, by hand, in every block of a small ViT."""
    found = info.model_info(small("ViT", MODEL__NUM_CLASSES=5), depth=3)
    tokens, dim = 2 * 4 * 4, 24
    attention = {p.macs for p in found.parts if p.name.endswith(".attn")}
    assert attention == {4 * tokens * dim * dim + 2 * tokens * tokens * dim}


@pytest.mark.parametrize("name", ["S3D", "VideoMAE"])
def test_log_model_info(name, caplog):
    cfg = config.load([], [*SHARED, *settings(MODEL__MODEL_NAME=name, MASK__RATIO=0.9 * (name == "VideoMAE"))])
    with caplog.at_level(logging.INFO, "videorl"):
        info.log_model_info(cfg)
    assert "multiply-adds" in caplog.text
    assert ("hidden tokens" in caplog.text) == (name == "VideoMAE")


def test_the_tool_prints_a_table_and_json(tmp_path, capsys):
    yaml = tmp_path / "x.yaml"
    yaml.write_text("MODEL: {MODEL_NAME: VideoMAE}\nMASK: {RATIO: 0.9}\nDATA: {NUM_FRAMES: 16}\n")
    tool.main(["--cfg", str(yaml), "--depth", "2", "VIDEOMAE.DECODER_DEPTH", "8"])
    text = capsys.readouterr().out
    assert "101,307,264" in text
    assert "53.433148 G" in " ".join(text.split())
    assert "decoder" in text
    tool.main(["--cfg", str(yaml), "--json"])
    found = json.loads(capsys.readouterr().out)
    macs = found["published"] - found["norms"] - found["hidden"]
    assert found["parts"][0] == {"name": "", "parameters": 94_210_944, "macs": macs}
    with pytest.raises(SystemExit) as ended:
        tool.main(["--cfg", str(yaml), "--depth", "-1"])
    assert ended.value.code == 2
    assert "expected 0 (the model alone) or more" in capsys.readouterr().err


def test_a_model_that_cannot_be_counted_is_told_of_and_no_more(monkeypatch, caplog):
    def failing(cfg):
        raise NotImplementedError("no meta kernel\nof this")

    monkeypatch.setattr(info, "model_info", failing)
    info.log_model_info(config.load(["configs/toy/mvit.yaml"], []))
    assert "LOG_MODEL_INFO: MViT cannot be counted without weights (NotImplementedError: no meta kernel)" in caplog.text
