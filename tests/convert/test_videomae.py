"""Files of VideoMAE V1 and V2, V-SWIFT and transformers give the published outputs, and say what they do not hold."""

import argparse
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from videorl import checkpoint, convert
from videorl.cli import convert as tool
from videorl.convert import classes, kinetics710
from videorl.convert.facts import facts
from videorl.models.videomae import VideoMAE
from videorl.models.vit import ViT, resize_table
from videorl.registry import UserError
from videorl.spec import Clip, Masking, Spec

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/videomae"
sys.path.insert(0, str(GOLDEN.parent))
from recipe import check, load_case  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUTS = json.loads((GOLDEN / "state_dict_keys.json").read_text())["expected"]
SMALL = {"embed_dim": 48, "num_heads": 3}
DECODER = {"decoder_dim": 24, "decoder_depth": 2, "decoder_heads": 2}
WIDE = (16, 224, (4, 56, 56))  # the published clips in 4 x 4 x 4 tokens


def spec(frames: int, size: int, patch=(2, 16, 16), classes: int = 7) -> Spec:
    clip = Clip(frames, 1, size, size, mean=MEAN, std=STD)
    return Spec(clip, {"kinetics": classes}, patch=patch, masking=Masking(ratio=0.75))


def vit(frames=8, size=64, patch=(2, 16, 16), classes=7, depth=3) -> ViT:
    return ViT(spec(frames, size, patch, classes), depth=depth, **SMALL).eval()


def videomae(frames=8, size=32, patch=(2, 8, 8), depth=2) -> VideoMAE:
    return VideoMAE(spec(frames, size, patch), depth=depth, **SMALL, **DECODER).eval()


def random(model: nn.Module) -> nn.Module:
    """The model with all parameters drawn, biases too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def published(model: nn.Module, tables: bool = False) -> dict[str, Tensor]:
    """Our weights as V1 and V2 name them, or with `tables` as V-SWIFT does."""
    names = {"head.projection.weight": "head.weight", "head.projection.bias": "head.bias"}
    if tables:
        names |= {"positions": "pos_embed", "decoder.positions": "pos_embed", "encoder.positions": "encoder.pos_embed"}
        names |= {"mask_token": "decoder.mask_token"}
    kept = {name: value for name, value in model.state_dict().items() if tables or not name.endswith("positions")}
    flat = {name: v.flatten(0, 2)[None] if name.endswith("positions") else v for name, v in kept.items()}
    return {names.get(name, name): value.clone() for name, value in flat.items()}


def same(model: nn.Module, other: nn.Module, part: str = "") -> bool:
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if part in name)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "videorl")
    return caplog


# --- names -----------------------------------------------------------------------------------------------------------


def base_weights(layout: str) -> dict[str, Tensor]:
    """Tensors without numbers, of the names and shapes of a published file."""
    rows = LAYOUTS["keys"][layout].items()
    names = {name.replace("N", str(i)): row["shape"] for name, row in rows for i in range(row["layers"])}
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


@pytest.mark.parametrize("layout", LAYOUTS["keys"])
def test_published_names(layout):
    weights = base_weights(layout)
    with torch.device("meta"):
        model = VideoMAE(spec(16, 224)) if "pretrain" in layout else ViT(spec(16, 224, classes=174))
    _, audit = convert.fit(model, {"model": weights}, "x.pth", testing=True)
    assert (audit.layout, audit.part, audit.missing, audit.unexpected) == ("VideoMAE", 1.0, [], [])
    assert len([layout for layout in convert.layouts() if layout.matches(set(weights))]) == 1


@pytest.mark.parametrize("layout", ["vswift_pretrain_base", "v2_pretrain_base"])
def test_published_names_of_pre_training_for_fine_tuning(layout):
    with torch.device("meta"):
        model = ViT(spec(16, 224))
    _, audit = convert.fit(model, {"model": base_weights(layout)}, "x.pth")
    assert (audit.part, audit.missing, audit.misfits) == (1.0, [], {})
    assert set(audit.fresh) == {f"{part}.{x}" for part in ("fc_norm", "head.projection") for x in ("weight", "bias")}
    assert all(name.startswith(("encoder.norm.", "decoder", "encoder_to_", "mask_token")) for name in audit.unexpected)


@pytest.mark.parametrize(
    "names",
    [
        {"patch_embed.proj.weight", "blocks.0.attn.q.weight", "blocks.0.attn.q.bias", "pos_embed_spatial", "cls_token",
         "decoder_blocks.0.attn.q.weight", "decoder_pred.weight", "mask_token"},
        {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "pos_embed", "head.weight"},
        {"vit.embeddings.patch_embeddings.projection.weight", "vit.encoder.layer.0.attention.attention.query.weight"},
    ],
    ids=["mae_st", "timm", "transformers' ViT"],
)  # fmt: skip
def test_other_files_are_not_taken_for_these(names):
    layout = convert.layout_of(names)
    assert layout is None or "VideoMAE" not in layout.NAME


# --- the published outputs -------------------------------------------------------------------------------------------


def logits(model: ViT, video: Tensor) -> Tensor:
    with torch.no_grad():
        return model(video)["logits"]


def predicted(model: VideoMAE, video: Tensor, mask: Tensor) -> Tensor:
    """Of normalised clips [B, 3, T, H, W] and mask [B, N], True where hidden."""
    mean, std = (torch.tensor(row)[:, None, None, None] for row in (MEAN, STD))
    pixels = ((video * std + mean) * 255).transpose(1, 2)
    visible, masked = (kept.nonzero()[:, 1].view(len(mask), -1) for kept in (~mask, mask))
    with torch.no_grad():
        return model(pixels, visible, masked)["predicted"]


def test_v_swift_fine_tuned():
    case, model = load_case(GOLDEN / "finetune_small.pt"), vit()
    file = {"model": case["state_dict"] | {"pos_embed": vit().positions.flatten(0, 2)[None]}}
    convert.load(model, file, "x.pth", testing=True)
    check(case, {"logits": logits(model, case["inputs"]["video"])})


def test_v_swift_pre_trained():
    case, model = load_case(GOLDEN / "pretrain_small.pt"), videomae()
    tables = {name: value for name, value in published(model, tables=True).items() if name.endswith("pos_embed")}
    convert.load(model, {"model": case["state_dict"] | tables}, "x.pth", testing=True)
    mask = case["expected"]["mask"]
    check(case, {"prediction_raster_order": predicted(model, case["inputs"]["video"], mask)})


@pytest.mark.parametrize("order", [sorted, reversed])
def test_v_swift_s_tables_are_known_by_name(order):
    """Published code puts both on one name, and takes the one that comes last."""
    source = random(videomae())
    weights = published(source, tables=True)
    weights["pos_embed"], weights["encoder.pos_embed"] = weights["pos_embed"] + 1, weights["encoder.pos_embed"] + 2
    weights = {name: weights[name] for name in order(list(weights))}
    model, tuned = videomae(), vit(8, 32, (2, 8, 8), depth=2)
    convert.load(model, weights, "x.pth", testing=True)
    convert.load(tuned, weights, "x.pth")
    torch.testing.assert_close(model.decoder.positions, source.decoder.positions + 1)
    for table in (model.encoder.positions, tuned.positions):
        torch.testing.assert_close(table, source.encoder.positions + 2)


# --- positions -------------------------------------------------------------------------------------------------------


def test_files_without_tables_give_the_published_outputs_of_any_clips(said):
    """Their clips are not those of the published models, 16 x 224 x 224."""
    case, model = load_case(GOLDEN / "finetune_small.pt"), vit()
    assert not [name for name in case["state_dict"] if "pos" in name]
    convert.load(model, {"model": case["state_dict"]}, "x.pth", testing=True)
    check(case, {"logits": logits(model, case["inputs"]["video"])})
    assert "made new        1  positions" in said.text
    case, model = load_case(GOLDEN / "pretrain_small.pt"), videomae()
    convert.load(model, {"model": case["state_dict"]}, "x.pth", testing=True)
    check(case, {"prediction_raster_order": predicted(model, case["inputs"]["video"], case["expected"]["mask"])})


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("make", [vit, videomae])
def test_positions_are_made_new_for_other_clips(make, tables):
    """As V1 does: 392 tokens of 16 x 112 x 112 pixels are no 2 x 14 x 14."""
    source, model = random(make(16, 112, (2, 16, 16))), make(8, 224, (2, 16, 16))
    _, audit = convert.fit(model, published(source, tables), "x.pth", testing=True)
    assert audit.interpolated == {}
    assert set(audit.made_new) == {name for name in model.state_dict() if name.endswith("positions")}
    convert.load(model, published(source, tables), "x.pth", testing=True)
    assert same(model, make(8, 224, (2, 16, 16)), "positions")


def test_learned_flat_tables_are_of_the_clips_that_are_named():
    source, model = random(vit(16, 112)), vit(8, 224)
    weights = published(source, tables=True)
    weights["pos_embed"] = torch.randn(1, 392, 48)
    with pytest.raises(UserError, match="^x.pth: positions: found a learned table of 392 .* set MODEL.CHECKPOINT_CLIP"):
        convert.load(model, weights, "x.pth", testing=True)
    _, audit = convert.fit(model, weights, "x.pth", choice=convert.Choice(clip=(16, 112, 112)))
    assert audit.interpolated == {"positions": "(1, 1, 392) -> (4, 14, 14)"}
    convert.load(model, weights, "x.pth", testing=True, choice=convert.Choice(clip=(16, 112, 112)))
    wanted = resize_table(weights["pos_embed"].view(8, 7, 7, 48), (4, 14, 14))
    assert torch.equal(model.positions, wanted)


@pytest.mark.parametrize("size", [32, 48])
def test_our_own_pre_trained_file_for_fine_tuning(size, said):
    source, model = random(videomae()), vit(8, size, (2, 8, 8), depth=2)
    state = {"epoch": 3, "model_state": source.state_dict(), "classes": {}}
    _, audit = convert.fit(model, state, "ours.pyth")
    assert audit.made_new == (["positions"] if size == 48 else [])
    convert.load(model, state, "ours.pyth")
    assert same(model.blocks, source.encoder.blocks)
    assert same(model.patch_embed, source.encoder.patch_embed)
    assert torch.equal(model.positions, source.encoder.positions) == (size == 32)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["model", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_files_as_their_training_writes_them(tmp_path, entry, prefix):
    source, model, file = random(videomae(*WIDE)), videomae(*WIDE), tmp_path / "checkpoint-799.pth"
    args = argparse.Namespace(model="pretrain_videomae_small", opt_betas=[0.9, 0.95], window_size=(8, 14, 14), gpu=None)
    weights = {prefix + name: value for name, value in published(source).items()}
    torch.save({entry: weights, "optimizer": {"state": {}}, "epoch": 799, "scaler": {"scale": 1.0}, "args": args}, file)
    convert.load(model, checkpoint.read(file), str(file), testing=True)
    assert same(model, source)


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    weights = published(vit())
    save_file(weights, tmp_path / "x.safetensors")
    found = checkpoint.read(tmp_path / "x.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    (tmp_path / "x.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read: it is no file of tensors and plain values") as error:
        checkpoint.read(tmp_path / "pytorch_model.bin")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello" * 99, None], ids=["empty", "text", "of torch"])
def test_what_is_no_safetensors_file(tmp_path, content):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content) if content is not None else torch.save({"a": torch.ones(2)}, file)
    with pytest.raises(UserError, match=f"^checkpoint {file} cannot be read: it is no whole file of safetensors") as e:
        checkpoint.read(file)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="is a folder without model.safetensors or pytorch_model.bin; name a file"):
        checkpoint.read(tmp_path)


# --- transformers ----------------------------------------------------------------------------------------------------

HF_NAMES = {
    "encoder.patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
    "encoder.blocks.": "videomae.encoder.layer.",
    "decoder.blocks.": "decoder.decoder_layers.",
    "encoder.norm.": "videomae.layernorm.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    "head.projection.": "classifier.",
}


def as_transformers(model: nn.Module, spelling: str) -> dict[str, Tensor]:
    """Our weights as transformers names them. `spelling`: of the biases."""
    named = {}
    for name, value in model.state_dict().items():
        name = name if isinstance(model, VideoMAE) else re.sub("^(blocks|patch_embed)", r"encoder.\1", name)
        for ours, theirs in HF_NAMES.items():
            name = name.replace(ours, theirs)
        if name.endswith("positions"):
            continue
        if name.endswith(".attn.qkv.weight"):
            for part, rows in zip(("query", "key", "value"), value.chunk(3)):
                named[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = rows
            continue
        for short, long in (("q_bias", "query.bias"), ("v_bias", "value.bias")):
            name = name.replace(f".attn.{short}", f".attention.attention.{long if spelling == 'new' else short}")
        named[name] = value
    return named


@pytest.mark.parametrize("make", [vit, videomae])
@pytest.mark.parametrize("spelling", ["old", "new"])
def test_transformers_names(make, spelling):
    source, model = random(make(*WIDE)), make(*WIDE)
    weights = as_transformers(source, spelling)
    assert len([layout for layout in convert.layouts() if layout.matches(set(weights))]) == 1
    convert.load(model, weights, "model.safetensors", testing=True)
    assert same(model, source)


def test_transformers_pre_trained_file_for_fine_tuning(said):
    source, model = random(videomae(*WIDE)), vit(*WIDE, depth=2)
    convert.load(model, as_transformers(source, "old"), "model.safetensors")
    assert same(model.blocks, source.encoder.blocks)
    assert torch.equal(model.positions, source.encoder.positions)
    assert said.records[-1].levelname == "INFO"


PREPROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


@pytest.mark.parametrize("name", checkpoint.PUBLISHED)
def test_what_transformers_says_beside_its_files(tmp_path, name):
    from safetensors.torch import save_file

    weights = {k: value.contiguous() for k, value in as_transformers(vit(8, 32, (2, 8, 8)), "new").items()}
    (save_file if name.endswith(".safetensors") else torch.save)(weights, tmp_path / name)
    settings = {"num_frames": 8, "image_size": 32, "patch_size": 8, "tubelet_size": 2, "num_attention_heads": 3}
    settings |= {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "model_type": "videomae"}
    names = ["a", "b", "c", "d", "e", "f", "g"]
    settings["id2label"] = {str(i): names[i] for i in (6, 2, 0, 1, 3, 4, 5)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert facts(checkpoint.read(tmp_path), "x")["DATA.MEAN"] == [0.485, 0.456, 0.406]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    state = checkpoint.read(tmp_path)
    assert facts(state, "x") == {
        **{"EMBED_DIM": 48, "DEPTH": 3, "NUM_HEADS": 3, "MLP_RATIO": 4.0, "MODEL.PATCH_SIZE": [2, 8, 8]},
        **{"DATA.NUM_FRAMES": 8, "DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32},
        **{"DATA.MEAN": [0.5] * 3, "DATA.STD": [0.25] * 3},
    }
    model = vit(8, 32, (2, 8, 8))
    convert.load(model, state, str(tmp_path), data={"kinetics": names[::-1]}, testing=True)
    assert torch.equal(model.head.projection.weight, weights["classifier.weight"].flip(0))
    with pytest.raises(UserError, match="1 of 7 classes are not in the file: z"):
        convert.load(model, state, str(tmp_path), data={"kinetics": [*names[1:], "z"]}, testing=True)


@pytest.mark.parametrize("labels", [{"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "2": "b"}, ["a"], {"a": 0}, None])
def test_labels_that_name_no_classes(labels):
    assert classes.names_in({"config.json": {"id2label": labels}}) == {}


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_config_json_that_cannot_be_read(tmp_path, text):
    torch.save(as_transformers(vit(8, 32, (2, 8, 8)), "new"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json cannot be read"):
        checkpoint.read(tmp_path)


def test_what_videomae_s_files_say(tmp_path):
    """V1's and V2's in the `args` of their command, V2's on the hub, under `model.`, in a config.json."""
    args = argparse.Namespace(num_frames=8, sampling_rate=2, input_size=32, lr=1e-3)
    said = facts({"model": published(vit(8, 32, (2, 8, 8))), "args": args}, "x")
    assert (said["DATA.NUM_FRAMES"], said["DATA.SAMPLING_RATE"], said["DATA.TRAIN_CROP_SIZE"]) == (8, 2, 32)
    assert (said["MODEL.PATCH_SIZE"], said["DATA.MEAN"]) == ([2, 8, 8], [0.485, 0.456, 0.406])
    assert "NUM_HEADS" not in said, "none of the published widths"
    source, model = random(vit(8, 32, (2, 8, 8))), vit(8, 32, (2, 8, 8))
    hub = {f"model.{name}": value for name, value in published(source).items()}
    hub["config.json"] = {"model_config": {"num_heads": 3, "img_size": 32, "num_frames": 8}}
    said = facts(hub, "x")
    assert (said["NUM_HEADS"], said["DATA.NUM_FRAMES"], said["DATA.TEST_CROP_SIZE"]) == (3, 8, 32)
    convert.load(model, hub, "x", testing=True)
    assert same(model, source)
    weights = base_weights("vswift_pretrain_base")
    assert facts({"model": weights}, "x")["NUM_HEADS"] == 12


def test_the_moving_average_of_a_file_is_named_and_can_be_chosen(said):
    plain, average, model = random(vit()), random(vit()), vit()
    average.head.projection.bias.data += 1
    file = {"model": published(plain), "model_ema": published(average)}
    convert.load(model, file, "x.pth", testing=True)
    assert same(model, plain)
    assert "weights of model; the file also has model_ema (a moving average): MODEL.CHECKPOINT_ENTRY" in said.text
    convert.load(model, file, "x.pth", testing=True, choice=convert.Choice("model_ema"))
    assert same(model, average)
    with pytest.raises(UserError, match=r"no weights: .* under ema \(MODEL.CHECKPOINT_ENTRY\); found model, model_ema"):
        convert.load(model, file, "x.pth", choice=convert.Choice("ema"))


def hf_config(**settings):
    from transformers import VideoMAEConfig

    return VideoMAEConfig(
        image_size=224, patch_size=56, num_frames=16, tubelet_size=4, hidden_size=48, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=192, decoder_hidden_size=24, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2, decoder_intermediate_size=96, layer_norm_eps=1e-6, num_labels=7, **settings,
    )  # fmt: skip


def hf_file(model: nn.Module, folder: Path, spelling: str, kind: str) -> Path:
    model.save_pretrained(folder, save_original_format=spelling == "old")
    file = folder / "model.safetensors"
    names = checkpoint.read(file)
    assert any(name.endswith(".q_bias" if spelling == "old" else ".query.bias") for name in names)
    if kind == "bin":
        torch.save(names, folder / "pytorch_model.bin")
    return file if kind == "safetensors" else folder / "pytorch_model.bin"


@pytest.mark.slow  # the import of transformers alone
@pytest.mark.parametrize(("spelling", "kind"), [("old", "safetensors"), ("new", "bin")])
def test_transformers_outputs(tmp_path, spelling, kind):
    from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification

    video = torch.randn(2, 3, 16, 224, 224)
    theirs, model = random(VideoMAEForVideoClassification(hf_config()).eval()), vit(*WIDE, depth=2)
    theirs.fc_norm.eps = 1e-6
    file = hf_file(theirs, tmp_path / "tuned", spelling, kind)
    convert.load(model, checkpoint.read(file), str(file), testing=True)
    with torch.no_grad():
        wanted = theirs(video.transpose(1, 2)).logits
    torch.testing.assert_close(logits(model, video), wanted, atol=1e-5, rtol=1e-5)

    theirs, model = random(VideoMAEForPreTraining(hf_config(use_mean_pooling=False)).eval()), videomae(*WIDE)
    theirs.decoder.norm.eps = 1e-6
    file = hf_file(theirs, tmp_path / "pretrained", spelling, kind)
    convert.load(model, checkpoint.read(file), str(file), testing=True)
    mask = torch.stack([torch.randperm(64) < 48 for _ in video])
    with torch.no_grad():
        wanted = theirs(video.transpose(1, 2), mask).logits
    torch.testing.assert_close(predicted(model, video, mask), wanted, atol=1e-5, rtol=1e-5)


# --- Kinetics-710 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [400, 600, 700])
@pytest.mark.parametrize("testing", [False, True])
def test_a_head_of_kinetics_710_gives_that_of_its_parts(classes, testing, said):
    wanted = LAYOUTS["label_710_to"][str(classes)]
    assert len(set(wanted)) == len(wanted) == classes
    source, model = random(vit(*WIDE, classes=710)), vit(*WIDE, classes=classes)
    names = {"kinetics": [f"class {i}" for i in range(classes)]}
    convert.load(model, published(source), "x.pth", data=names, testing=testing)
    assert torch.equal(model.head.projection.weight, source.head.projection.weight[wanted])
    assert torch.equal(model.head.projection.bias, source.head.projection.bias[wanted])
    assert re.search(f"kinetics: the file has the 710 classes .* published list for Kinetics-{classes},", said.text)


def test_a_head_of_kinetics_710_stays_one():
    source, model = random(vit(*WIDE, classes=710)), vit(*WIDE, classes=710)
    convert.load(model, published(source), "x.pth", testing=True)
    assert same(model, source)


def test_names_of_classes_come_before_the_lists_of_kinetics_710():
    source, model = random(vit(*WIDE, classes=710)), vit(*WIDE, classes=400)
    names = [f"class {i}" for i in range(710)]
    state = {"model_state": source.state_dict(), "classes": names}
    convert.load(model, state, "x.pth", data={"kinetics": names[400:0:-1]}, testing=True)
    assert torch.equal(model.head.projection.weight, source.head.projection.weight[1:401].flip(0))
    with pytest.raises(UserError, match="label space kinetics has 400 classes here and 710 in the file"):
        convert.load(model, state, "x.pth", testing=True)


@pytest.mark.parametrize(("there", "here"), [(400, 710), (700, 400), (710, 101)])
def test_other_numbers_of_classes_have_no_list(there, here):
    assert kinetics710.rows(there, here) is None


# --- files that are not what is needed -------------------------------------------------------------------------------


def test_a_pre_trained_file_cannot_be_tested_as_a_classifier():
    source, model = random(videomae(*WIDE)), random(vit(*WIDE, depth=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for weights in (published(source), as_transformers(source, "new"), source.state_dict()):
        with pytest.raises(UserError, match="^x.pth: label space kinetics: the file has no head, as one of pre-train"):
            convert.load(model, weights, "x.pth", testing=True)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_fine_tuned_file_cannot_go_on_with_pre_training():
    source, model = random(vit(*WIDE, depth=2)), videomae(*WIDE)
    for weights in (published(source), as_transformers(source, "old")):
        with pytest.raises(UserError, match="a fine-tuned one, without decoder: .* set MODEL.MODEL_NAME ViT"):
            convert.load(model, weights, "x.pth")


def test_a_pre_trained_file_without_its_decoder(said):
    """As the released ViT-H of V1 is."""
    source, model = random(videomae(*WIDE)), videomae(*WIDE)
    weights = {name: value for name, value in published(source).items() if name.startswith("encoder.")}
    with pytest.raises(UserError, match=r"missing: mask_token, .*expected at least 95 %"):
        convert.load(model, weights, "x.pth")
    convert.load(model, weights, "x.pth", partial=True)
    assert same(model.encoder, source.encoder)
    table = next(message for message in said.messages if "layout of VideoMAE" in message)
    assert re.search(r"missing +\d+  mask_token, ", table)
    tuned = vit(*WIDE, depth=2)
    convert.load(tuned, weights, "x.pth")
    assert same(tuned.blocks, source.encoder.blocks)


def test_other_sizes_are_refused_by_name(said):
    weights = published(random(videomae(*WIDE)))
    wide = ViT(spec(*WIDE), depth=2, embed_dim=96, num_heads=3)
    words = r"of another shape: patch_embed.proj.weight \(48, 3, 4, 56, 56\) for \(96, 3, 4, 56, 56\)"
    with pytest.raises(UserError, match=words):
        convert.load(wide, weights, "x.pth")
    with pytest.raises(UserError, match=r"missing: blocks\.2\.norm1\.weight"):
        convert.load(vit(8, 32, (2, 8, 8), depth=3), published(random(videomae())), "x.pth")
    shallow, deep = vit(*WIDE, depth=1), published(random(vit(*WIDE)))
    with pytest.raises(UserError, match=r"tensors that this model has no place for \(blocks\.1\.norm1\.weight"):
        convert.load(shallow, deep, "x.pth", testing=True)


# --- videorl convert ------------------------------------------------------------------------------------------------


def test_the_tool_writes_checkpoints_of_ours(tmp_path, capsys):
    source, out = random(videomae(*WIDE)), tmp_path / "ours.pyth"
    torch.save({"model": published(source)}, tmp_path / "theirs.pth")
    size = ("MODEL.PATCH_SIZE", "[4,56,56]", "VIDEOMAE.DEPTH", 2, "VIDEOMAE.EMBED_DIM", 48, "VIDEOMAE.NUM_HEADS", 3)
    size += ("VIDEOMAE.DECODER_DIM", 24, "VIDEOMAE.DECODER_DEPTH", 2, "VIDEOMAE.DECODER_HEADS", 2)
    words = ("--cfg", ROOT / "configs/SSv2/VIDEOMAE_VITB_16x2_PT.yaml", *size)
    tool.main([str(word) for word in (tmp_path / "theirs.pth", out, *words)])
    assert "100.0 % of the model's numbers loaded" in capsys.readouterr().out
    model, tuned = videomae(*WIDE), vit(*WIDE, depth=2)
    convert.load(model, checkpoint.read(out), str(out), testing=True)
    convert.load(tuned, checkpoint.read(out), str(out))
    assert same(model, source)
    assert same(tuned.blocks, source.encoder.blocks)
