"""The narrator against the golden figures of facebookresearch/LaViLa, and against itself: cached, batched, resumed."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from videorl.losses.caption import Caption
from videorl.models.narrator import AttentionPool, Narrator
from videorl.models.sampling import Writer, gumbel, keys
from videorl.registry import UserError
from videorl.spec import Clip, Sampling, Spec, Text

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))
from published import own_names  # noqa: E402
from recipe import assert_close, check, limits, load_case  # noqa: E402

DTYPES = (torch.float32, torch.float64)
CASES = ("gated_every_1", "gated_every_2", "gated_every_3", "plain_every_1")
VIDEO = {"PATCH_SIZE": 4, "EMBED_DIM": 24, "DEPTH": 1, "NUM_HEADS": 2, "ATTENTION_TYPE": "frozen_in_time"}
LANGUAGE = {"width": 16, "heads": 2, "layers": 3, "vocabulary": 50, "context": 20, "dropout": 0.0, "queries": 4}
GREEDY = Sampling(max_length=12, temperature=0.0, top_p=1.0)
DRAWN = Sampling(max_length=12, returns=3, temperature=0.9, top_p=0.9, top_k=30, seed=5)


def published(case: dict) -> Narrator:
    config, vision = case["config"], case["config"]["vision"]
    gpt = config["gpt2"]
    video = {"PATCH_SIZE": vision["patch_size"], "EMBED_DIM": vision["embed_dim"], "DEPTH": vision["depth"]}
    video |= {"NUM_HEADS": vision["num_heads"], "ATTENTION_TYPE": "frozen_in_time", "ACTIVATION": vision["act"]}
    spec = Spec(Clip(vision["num_frames"], 1, vision["img_size"], vision["img_size"]), text=Text(length=12))
    model = Narrator(spec, video={**video, "PRE_NORM_EPS": 1e-5, "FREEZE": "all"}, width=gpt["n_embd"],
                     heads=gpt["n_head"], layers=gpt["n_layer"], vocabulary=gpt["vocab_size"],
                     context=gpt["n_positions"], dropout=0.0, cross_every=config["cross_attn_freq"],
                     gated=config["gated"], queries=config["num_img_queries"], freeze_language=True)  # fmt: skip
    # Its heads are 64 wide in all that is published.
    model.img_attn_pool = AttentionPool(gpt["n_embd"], vision["embed_dim"], config["heads"], config["dim_head"])
    model.load_state_dict(own_names(case["state_dict"]), strict=True)
    return model


def tiny(*, seed: int = 0, video: dict | None = None, act_checkpoint: bool = False, **keys) -> Narrator:
    torch.manual_seed(seed)
    spec = Spec(Clip(2, 1, 8, 8), text=Text(length=12), act_checkpoint=act_checkpoint)
    model = Narrator(spec, video={**VIDEO, **(video or {})}, **{**LANGUAGE, "cross_every": 2, **keys})
    for parameter in model.parameters():  # no gate at its start, where nothing is seen
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def clips():
    return torch.randn(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_published_model(name, dtype):
    case = load_case(GOLDEN / f"narrator/{name}.pt")
    model = published(case).to(dtype)
    video, text = case["inputs"]["video"].to(dtype), case["inputs"]["text"]
    outputs, loss = model(video, text), Caption(None, mean="positions")
    value = loss(outputs["token_logits"], text) / loss.count({"text": text})
    value.backward()
    grads = {n.replace("video.", "visual."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == set(case["case"]["trainable"])
    train = {"loss": value, "norm": {n: float(g.double().norm()) for n, g in grads.items()}, "full": grads}
    logits = {"logits": outputs["token_logits"].mT}
    if dtype == torch.float64:
        assert_close(logits["logits"], case["expected64"]["logits"], *limits(case, "float64"))
        expected = {k: v for k, v in case["expected64"]["train"].items() if k in train}
        assert_close(train, expected, *limits(case, "float64_gradients"))
        return
    check(case, {**logits, "image_tokens": model.image_tokens(video)})
    expected = {k: v for k, v in case["expected"]["train"].items() if k in train}
    assert_close(train, expected, *limits(case, "train"))
    unlooked_at = {n for n in case["state_dict"] if not n.endswith((".beta", "lm_head.weight"))}
    assert sum(case["state_dict"][n].numel() for n in unlooked_at) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_published_greedy_texts(name):
    case = load_case(GOLDEN / f"narrator/{name}.pt")
    model, expected = published(case).eval(), case["expected"]["greedy_ids"]
    for use_cache in (True, False):
        sampling = Sampling(max_length=expected.shape[1], temperature=0.0, top_p=1.0)
        ids, _ = model.generate(case["inputs"]["video"], torch.arange(2), sampling, use_cache=use_cache)
        assert torch.equal(ids[:, 0], expected)


def test_published_pool():
    case = load_case(GOLDEN / "narrator/attention_pool.pt")
    config = case["config"]
    pool = AttentionPool(config["dim"], config["context_dim"], config["heads"], config["dim_head"])
    pool.load_state_dict({n: v for n, v in case["state_dict"].items() if not n.endswith(".beta")})
    check(case, {"output": pool(case["inputs"]["queries"], case["inputs"]["context"])})


def of_language_alone(model: Narrator) -> dict:
    weights = model.text_decoder.state_dict().items()
    return {name: value for name, value in weights if "cross" not in name and "alpha" not in name}


def log_likelihood(model: Narrator, video: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Of each text `[B, R, L]`, token by token, without cache and one text at a time."""
    found = torch.zeros(ids.shape[:2])
    for b, r in torch.cartesian_prod(torch.arange(ids.shape[0]), torch.arange(ids.shape[1])).tolist():
        text = ids[b, r][ids[b, r] >= 0]
        logits = model(video[b : b + 1], F.pad(text, (0, ids.shape[2] - len(text)), value=-1)[None])["token_logits"]
        found[b, r] = logits[0].log_softmax(-1)[torch.arange(len(text) - 1), text[1:]].sum()
    return found


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(max_length=12, returns=2, beams=3)])
def test_cached_texts_are_those_without_cache_and_have_their_true_likelihoods(model, clips, sampling):
    index = torch.tensor([7, 0, 3, 2])
    ids, likely = model.generate(clips, index, sampling)
    again, likely_again = model.generate(clips, index, sampling, use_cache=False)
    assert ids.shape == (4, sampling.returns, 12)
    assert torch.equal(ids, again)
    torch.testing.assert_close(likely, likely_again)
    with torch.no_grad():
        torch.testing.assert_close(likely, log_likelihood(model, clips, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling", [DRAWN, Sampling(max_length=12, returns=2, beams=3)])
def test_texts_of_a_clip_depend_on_seed_and_clip_alone(model, clips, sampling):
    index = torch.tensor([7, 0, 3, 2])
    ids, likely = model.generate(clips, index, sampling)
    order = torch.tensor([2, 0])
    torch.manual_seed(99)
    part, likely_part = model.generate(clips[order], index[order], sampling)
    assert torch.equal(part, ids[order])
    torch.testing.assert_close(likely_part, likely[order])
    assert len({tuple(row) for row in ids.flatten(0, 1).tolist()}) > 4  # clips and returns do differ


def test_another_seed_clip_or_number_of_texts(model, clips):
    same, index = clips[:1].expand(2, -1, -1, -1, -1), torch.tensor([1, 2])
    ids, _ = model.generate(same, index, DRAWN)
    assert not torch.equal(ids[0], ids[1])
    other, _ = model.generate(same, index, Sampling(**{**vars(DRAWN), "seed": 6}))
    assert not torch.equal(ids, other)
    fewer, _ = model.generate(same, index, Sampling(**{**vars(DRAWN), "returns": 2}))
    assert torch.equal(fewer, ids[:, :2])


def test_what_is_drawn_has_the_probabilities_of_the_model():
    texts = 4000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5]).expand(texts, -1)
    ids = torch.zeros(texts, 1, dtype=torch.int64)
    writer = Writer(torch.arange(texts), Sampling(temperature=0.7, top_p=1.0), end=0)
    shares = torch.bincount(writer(ids, logits).argmax(1), minlength=5) / texts
    expected = (logits[0] / 0.7).softmax(0)
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / texts).sqrt()).all()
    kept = Writer(torch.arange(texts), Sampling(top_p=1.0, top_k=2), end=0)(ids, logits).argmax(1)
    assert set(kept.tolist()) == {0, 1}


def test_noise_is_gumbel_and_tokens_steps_and_texts_have_their_own():
    noise = gumbel(keys(0, torch.arange(50), 2), 1, 1000)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(1.6449, abs=0.05)
    assert float(torch.corrcoef(noise[:20]).fill_diagonal_(0).abs().max()) < 0.2
    assert not torch.equal(noise, gumbel(keys(0, torch.arange(50), 2), 2, 1000))
    assert noise.isfinite().all()


def test_what_was_seen_is_not_kept_and_training_draws_no_graph_of_frozen_towers(clips):
    model = tiny(video={"FREEZE": "all"}, freeze_language=True)
    before = set(model.state_dict()) | {n for m in model.modules() for n in vars(m)}
    model.generate(clips, torch.arange(4), DRAWN)
    assert set(model.state_dict()) | {n for m in model.modules() for n in vars(m)} == before
    assert not model.video.tokens(clips).requires_grad
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in trained} == {"img_queries", "img_attn_pool", "img_attn_pool_norm", "text_decoder"}
    assert all("cross" in n or "alpha_" in n for n in trained if n.startswith("text_decoder."))


def test_closed_gates_leave_the_language_model_as_it_is(clips):
    model = tiny()
    for name, parameter in model.named_parameters():
        if "alpha_" in name:
            parameter.data.zero_()
    text = F.pad(torch.randint(50, (4, 9)), (1, 2), value=49)
    stock = type(model.text_decoder).__mro__[2](model.text_decoder.config)  # GPT2LMHeadModel itself
    stock.load_state_dict(of_language_alone(model))
    torch.testing.assert_close(model(clips, text)["token_logits"], stock.eval()(text[:, :-1]).logits)


def test_recomputed_activations_give_the_same_gradients(clips):
    text = F.pad(torch.randint(50, (4, 9)), (1, 2), value=49)
    found = []
    for again in (False, True):
        model = tiny(act_checkpoint=again).train()
        model(clips, text)["token_logits"].square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(found[0], found[1])


def test_padding_changes_nothing_and_is_not_computed(model, clips):
    text = torch.tensor([[49, 3, 4, 49, -1, -1]] * 4)
    logits = model(clips, text)["token_logits"]
    assert logits.shape == (4, 3, 50)
    torch.testing.assert_close(logits, model(clips, text[:, None, :4])["token_logits"])


SIZES = {  # of LaViLa, counted by its own code, in millions: all, and what is trained with the published freezing
    "B_GPT2": ({}, {}, 4, 224, (325.141, 86.531)),
    "L_336_GPT2_XL": (
        {"PATCH_SIZE": 14, "EMBED_DIM": 1024, "DEPTH": 24, "NUM_HEADS": 16},
        {"width": 1600, "heads": 25, "layers": 48, "cross_every": 3},
        4, 336, (2459.451, 497.518),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    video, language, frames, size, expected = SIZES[name]
    shown = {"ATTENTION_TYPE": "frozen_in_time", "PRE_NORM_EPS": 1e-5, "FREEZE": "all"}
    with torch.device("meta"):
        spec = Spec(Clip(frames, 1, size, size))
        model = Narrator(spec, video={**shown, **video}, freeze_language=True, **language)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad or all_of_it) for all_of_it in (True, False)]
    assert [round(count / 1e6, 3) for count in counts] == list(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([[49, 50, 49]], "VOCABULARY 50: .* gives 49 first and 50"),
        ([[48, 3, 48]], "texts begin with token 49"),
        ([[49] * 21], "TEXT.MAX_WORDS 21: the language model has places for 20"),
        ([[[49, 3], [49, 4]]], "reads one text of each clip"),
    ],
)
def test_texts_that_do_not_fit_are_refused(model, clips, text, expected):
    with pytest.raises(UserError, match=expected):
        model(clips[:1], torch.tensor(text))


def test_more_tokens_than_places_are_refused(model, clips):
    with pytest.raises(UserError, match="MAX_LENGTH 21: the language model has places for 20"):
        model.generate(clips, torch.arange(4), Sampling(max_length=21))


def test_first_weights_are_those_of_a_folder_and_must_have_the_shape(tmp_path):
    model = tiny()
    plain = of_language_alone(model)
    model.text_decoder.save_pretrained(tmp_path, state_dict=dict(plain))
    keys = {**LANGUAGE, "language": str(tmp_path)}
    loaded = Narrator(Spec(Clip(2, 1, 8, 8)), video=VIDEO, **keys)
    assert loaded.start == loaded.end == 49
    for name, value in of_language_alone(loaded).items():
        assert torch.equal(value, plain[name]), name
    with pytest.raises(UserError, match="hidden_size 16, NARRATOR.WIDTH says 32: set 16"):
        tiny(language=str(tmp_path), width=32)
    with pytest.raises(UserError, match="NARRATOR.LANGUAGE nowhere is no folder; expected one with config.json"):
        tiny(language="nowhere")
