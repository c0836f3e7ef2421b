"""S3D-G and its text tower against the golden figures of MIL-NCE_HowTo100M and its release."""

import copy
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from videorl.engine.objective import Objective
from videorl.engine.step import Precision, backward
from videorl.losses.milnce import MILNCE
from videorl.models.s3d import MIXED, S3D, max_pool, space_to_depth
from videorl.models.word2vec import TextTower, word_table
from videorl.registry import MODELS, UserError
from videorl.spec import NAMES, Clip, Spec

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, check, limits, load_case  # noqa: E402

DTYPES = (torch.float32, torch.float64)
STEMS = ("plain", "space_to_depth")
SPEC = Spec(Clip(16, 1, 64, 64))
LATE = ["fc.bias", "mixed_5c.gating_b3.fc.bias", "mixed_5c.conv_b3_b.bn1.weight"]


def of_case(name: str, dtype=torch.float32) -> tuple[S3D, dict]:
    case = load_case(GOLDEN / f"s3d/{name}.pt")
    words = len(case["config"]["vocab"]) + 1
    model = S3D(SPEC, space_to_depth=name != "plain", vocabulary=words).to(dtype)
    assert list(model.state_dict()) == list(case["state_dict"])
    model.load_state_dict(case["state_dict"])
    return model.eval(), case


def taps_of(model: S3D) -> dict:
    """A dict that the next forward pass fills with the maps after each part; those of max pools are its inputs."""
    taps = {}
    for name in ("conv1", "conv_2b", "conv_2c", "gating", *(f"mixed_{m}" for m in MIXED)):
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: taps.__setitem__(name, out))
    for name, after in {"2a": "conv_2b", "3a": "mixed_3b", "4a": "mixed_4b", "5a": "mixed_5b"}.items():
        tap = f"maxpool_{name}"
        model.get_submodule(after).register_forward_pre_hook(lambda m, i, tap=tap: taps.__setitem__(tap, i[0]))
    return taps


def similarity_loss(found: dict) -> torch.Tensor:
    """The loss of the golden gradients: the mean square of all similarities."""
    return (found["video_embed"] @ found["text_embed"].flatten(0, 1).T).square().mean()


def published(found: dict) -> dict:
    """Outputs under the names of the golden cases."""
    text = {"text_embedding": found["text_embed"].flatten(0, 1)} if "text_embed" in found else {}
    return {"video_embedding": found["video_embed"], "mixed_5c": found["features"], **text}


@pytest.mark.parametrize("name", STEMS)
def test_forward(name):
    model, case = of_case(name)
    inputs, taps = case["inputs"], taps_of(model)
    with torch.no_grad():
        check(case, {**published(model(inputs["video"], inputs["tokens"])), "taps": taps})
        other = published(model(inputs["video_other"]))
        sentences = model.text_module(case["expected"]["sentence_ids"])
    check(
        case,
        {"sentence_embedding": sentences, **{f"video_other_{k.removeprefix('video_')}": v for k, v in other.items()}},
    )


@pytest.mark.parametrize("name", STEMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_with_running_statistics(name, dtype):
    model, case = of_case(name, dtype)
    found = model(case["inputs"]["video"].to(dtype), case["inputs"]["tokens"])
    loss = similarity_loss(found)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    kept = {n: g for n, g in gradients.items() if g is not None}
    got = {
        "loss": loss,
        "no_grad": [n for n, g in gradients.items() if g is None],
        "norm": {n: float(g.double().norm()) for n, g in kept.items()},
        "full": {n: kept[n] for n in case["config"]["grads"]},
    }
    if dtype == torch.float32:
        check(case, {"grad_eval": got})
    else:
        assert_close(found["video_embed"], case["expected64"]["video_embedding"], *limits(case, "float64"))
        assert_close(got, case["expected64"]["grad_eval"], *limits(case, "float64_gradients"))


@pytest.mark.parametrize("name", STEMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_training_step(name, dtype):
    model, case = of_case(name, dtype)
    found = model.train()(case["inputs"]["video_train"].to(dtype), case["inputs"]["tokens"])
    loss = similarity_loss(found)
    loss.backward()
    buffers, full = dict(model.named_buffers()), {n: model.get_parameter(n).grad for n in LATE}
    got = {**published(found), "loss": loss, "full": full, "buffers_after": buffers}
    if dtype == torch.float32:
        check(case, {"train": got})
    else:
        assert_close(got, case["expected64"]["train"], *limits(case, "float64_gradients"))


def test_release():
    model, case = of_case("release")
    with torch.no_grad():
        found = published(model(case["inputs"]["video"]))
        number = {word: i for i, word in enumerate(case["config"]["vocab"], 1)}
        words = [re.findall(r"[\w']+", sentence.lower()) for sentence in case["config"]["sentences"]]
        ids = [([number[w] for w in ws if w in number] + [0] * 16)[:16] for ws in words]
        check(case, {**found, "sentence_embedding": model.text_module(torch.tensor(ids))})


@pytest.mark.parametrize(
    ("stem", "parameters", "giga"),
    [("plain", 31_190_408, (16.1, 32.2, 13.1)), ("space_to_depth", 31_211_336, (18.9, 37.2, 15.4))],
)
def test_size_of_published_models(stem, parameters, giga):
    with torch.device("meta"):
        model = S3D(SPEC, space_to_depth=stem != "plain").eval()
    assert len(model.state_dict()) == 537
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 19_875_000
    for (frames, size), expected in zip([(16, 224), (32, 224), (16, 200)], giga):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, frames, size, size, device="meta"))
        assert counter.get_total_flops() / 2e9 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))])
def test_max_pool_pads_with_zeros_at_the_end(kernel, stride):
    for shape in itertools.product((3, 4), (6, 7), (8, 9)):
        x = F.relu(torch.randn(2, 5, *shape))
        pads = [max(k - s, 0) for k, s in zip(kernel, stride)]
        slow = F.max_pool3d(F.pad(x, (0, pads[2], 0, pads[1], 0, pads[0])), kernel, stride, ceil_mode=True)
        assert torch.equal(max_pool(x, kernel, stride), slow)


def test_space_to_depth_order():
    video = torch.arange(2 * 3 * 4 * 6 * 8).view(2, 3, 4, 6, 8)
    blocks = space_to_depth(video)
    assert blocks.shape == (2, 24, 2, 3, 4)
    for t, h, w, c in itertools.product(range(2), range(2), range(2), range(3)):
        assert torch.equal(blocks[:, ((t * 2 + h) * 2 + w) * 3 + c], video[:, c, t::2, h::2, w::2])
    with pytest.raises(UserError, match=r"even frames, rows and columns, found \(4, 6, 7\)"):
        space_to_depth(video[..., 1:])


def test_activation_checkpointing_changes_nothing():
    models, video = [], torch.rand(2, 3, 4, 32, 32)
    for on in (False, True):
        torch.manual_seed(0)
        models.append(S3D(Spec(Clip(4, 1, 32, 32), act_checkpoint=on), vocabulary=2))
        models[-1](video)["video_embed"].sum().backward()
    plain, recomputed = models
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters()):
        assert a.grad is b.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6), name
    for (name, a), b in zip(plain.named_buffers(), recomputed.buffers()):
        assert torch.equal(a, b), name


def test_step_of_milnce_equals_plain_autograd():
    clip = Clip(4, 1, 32, 32, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = {"video": torch.randint(256, (3, 4, 3, 32, 32)).byte(), "text": torch.randint(5, (3, 2, 6))}
    torch.manual_seed(0)
    model = S3D(Spec(clip), embed_dim=8, vocabulary=5)
    plain, loss = copy.deepcopy(model), MILNCE(Spec(clip))
    found = backward(
        model,
        Objective({"m": loss}, {"m": 1.0}),
        [batch],
        clip=clip,
        precision=Precision(torch.device("cpu")),
        seed=0,
        step=0,
    )
    outputs = plain(batch["video"].transpose(1, 2) / 255, batch["text"])
    expected = loss(outputs["video_embed"], outputs["text_embed"])
    expected.backward()
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    for (name, a), b in zip(model.named_parameters(), plain.parameters()):
        assert a.grad is b.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5), name
    assert model.conv1.bn1.num_batches_tracked == 1


def test_shapes_of_captions():
    model, text = S3D(SPEC, embed_dim=8, vocabulary=9).eval(), torch.randint(9, (2, 3, 5))
    video = torch.rand(2, 3, 8, 32, 32)
    several, one = model(video, text), model(video, text[:, 1])
    assert set(several) <= set(NAMES)
    assert {name: tuple(t.shape) for name, t in several.items()} == {
        "video_embed": (2, 8), "features": (2, 1024), "text_embed": (2, 3, 8)
    }  # fmt: skip
    torch.testing.assert_close(one["text_embed"], several["text_embed"][:, 1:2])


def test_padding_takes_part_in_the_maximum():
    tower = TextTower(torch.randn(4, 300), 6)
    words = tower.fc1(tower.word_embd.weight[[2, 0]]).relu()
    torch.testing.assert_close(tower(torch.tensor([2, 0, 0])), tower.fc2(words.amax(0)))
    assert not torch.equal(tower(torch.tensor([2, 0, 0])), tower(torch.tensor([2])))


def test_word_vectors_from_a_file(tmp_path):
    table = torch.randn(7, 300)
    torch.save(table, tmp_path / "word2vec.pth")
    frozen = S3D(SPEC, word2vec=str(tmp_path / "word2vec.pth")).text_module.word_embd.weight
    assert torch.equal(frozen, table)
    assert not frozen.requires_grad
    trained = S3D(SPEC, word2vec=str(tmp_path / "word2vec.pth"), freeze_words=False).text_module.word_embd.weight
    assert trained.requires_grad


def test_without_a_file_the_table_is_random_and_the_log_says_so(caplog):
    assert word_table("", 11).shape == (11, 300)
    assert "TEXT.WORD2VEC is empty: the vectors of 11 words are random" in caplog.text


@pytest.mark.parametrize("named", [True, False])
def test_the_dictionary_fits_the_word_table(named, tmp_path, caplog):
    """One row for each word, and row 0."""
    file = str(tmp_path / "word2vec.pth") if named else ""
    torch.save(torch.zeros(4, 3), tmp_path / "word2vec.pth")
    dictionary = str(tmp_path / "dict.npy")

    def build(*words: str) -> int:
        caplog.clear()
        np.save(dictionary, np.array(words))
        return S3D(SPEC, word2vec=file, dictionary=dictionary, vocabulary=4).text_module.word_embd.num_embeddings

    source = f"TEXT.WORD2VEC {file}" if named else "S3D.VOCABULARY"
    with pytest.raises(UserError) as error:
        build("a", "b", "c", "d")
    assert f"dict.npy has 4 words, {source} 4 rows, expected 5; name the dict.npy" in str(error.value)
    assert build("a", "b", "c") == 4
    assert "rows, expected" not in caplog.text
    build("a", "b")
    assert f"dict.npy has 2 words, {source} 4 rows, expected 3" in caplog.text
    with pytest.raises(UserError, match=r"TEXT\.DICT none\.npy cannot be read: .*No such file"):
        word_table(file, 4, "none.npy")


def test_kaiming_start():
    torch.manual_seed(0)
    model = S3D(SPEC, weight_init="kaiming_normal", vocabulary=2)
    weight = model.mixed_4f.conv_b1_b.conv1.weight
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.02)
    with pytest.raises(UserError, match="WEIGHT_INIT 'zeros': expected uniform or kaiming_normal"):
        S3D(SPEC, weight_init="zeros", vocabulary=2)


def test_errors_say_what_to_change(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth does not exist; expected the word2vec\.pth"):
        word_table(str(tmp_path / "none.pth"), 2)
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(UserError, match=r"text\.pth cannot be read"):
        word_table(str(tmp_path / "text.pth"), 2)
    for content, found in [({"a": 1}, "dict"), (torch.zeros(300), r"\(300,\)"), (torch.zeros(4, 3).int(), r"\(4, 3\)")]:
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=rf"expected one tensor \[words, D\], published D = 300, found {found}"):
            word_table(str(tmp_path / "wrong.pth"), 2)


def test_every_key_is_documented():
    assert [name for name, key in MODELS["S3D"].keys.items() if not key.doc] == []
