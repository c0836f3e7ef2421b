"""The exact step: any split into ranks and micro-batches gives the gradient of one process with the whole batch."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # also for the processes that are spawned from here
import exact_ranks as ranks

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import assert_close, check, limits, load_case  # noqa: E402

from videorl.engine.objective import Objective  # noqa: E402
from videorl.engine.step import Precision, backward, call, seed_chunk  # noqa: E402
from videorl.losses.informative import Informative  # noqa: E402
from videorl.registry import UserError  # noqa: E402

CASES = ranks.cases()


@pytest.fixture(scope="module")
def split():
    """Results for 2 and 3 ranks."""
    return ranks.spawn((2, 3))


@pytest.fixture(scope="module")
def whole():
    """Results of one process with the whole batch."""
    names = {tuple(case[0]) for case in CASES}
    return {n: ranks.gradient(list(n), 1, True) for n in names}


def relative_error(got: dict, expected: dict) -> float:
    """Largest error of a parameter's gradient, relative to its norm or, where that vanishes, to a part of the whole."""
    assert got.keys() == expected.keys()
    least = 0.01 * max(g.norm().item() for g in expected.values())
    return max((got[n] - expected[n]).norm().item() / max(expected[n].norm().item(), least) for n in expected)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_gradient_is_that_of_the_whole_batch(world, split, whole):
    worst = {}
    for number, case in enumerate(CASES):
        got = split[world]["cases"][number] if world > 1 else ranks.gradient(*case)
        expected = whole[tuple(case[0])]
        error = relative_error(got["gradient"], expected["gradient"])
        assert error <= 1e-5, f"{case} with {world} ranks: relative error {error:.1e}"
        assert got["values"] == pytest.approx(expected["values"], rel=1e-5), case
        worst["+".join(case[0])] = max(worst.get("+".join(case[0]), 0.0), error)
    assert {
        "cross_entropy",
        "bce_logit",
        "caption",
        "caption_positions",
        "infonce",
        "egonce",
        "max_margin",
        "informative",
        "milnce",
        "multi_head+informative+sparsity",
    } <= worst.keys()


@pytest.mark.parametrize("world", [2, 3])
def test_shared_moments_change_nothing(split, world):
    """SOLVER.ZERO: the same bits as without, and one kind of checkpoint for both."""
    assert split[world]["shared"] == dict.fromkeys(split[world]["shared"], True)
    assert len(split[world]["shared"]) == 5


def test_a_model_without_its_inputs_is_refused():
    with pytest.raises(UserError, match="Tiny reads text, but the data set gives index, x"):
        call(ranks.Tiny(), {"x": torch.zeros(1, 6), "index": torch.zeros(1)})


def test_batch_norm_of_a_single_clip_is_refused():
    with pytest.raises(UserError, match="expected two videos or more in a micro-batch"):
        call(ranks.Tiny(norm=True).train(), {"x": torch.zeros(1, 6), "text": torch.zeros(1, 3, 4)})


class Terms(torch.nn.Module):
    """Cross-entropy as a sum, or as torch's habit is, a mean."""

    coupled = False

    def __init__(self, reduction: str):
        super().__init__()
        self.reduction = reduction

    def count(self, batch) -> int:
        return len(batch["labels"])

    def forward(self, logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels, reduction=self.reduction)


class AlreadyDivided(Terms):
    """A mean whose number of terms is one: of the micro-batches that a step has."""

    def count(self, batch) -> int:
        return 1


def first_step(loss: torch.nn.Module) -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 4), "labels": torch.arange(6) % 3, "paths": ["a"] * 6}
    objective = Objective({"mine": loss}, {"mine": 1.0})
    settings = {"clip": None, "precision": Precision(torch.device("cpu")), "seed": 0, "step": 0}
    backward(Logits(), objective, [batch], **settings)
    assert objective.checked


class Logits(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        return {"logits": super().forward(x)}


def test_a_separable_loss_that_returns_a_mean_is_refused_at_the_first_step():
    with pytest.raises(
        UserError, match=r"^loss 'mine' \(Terms\): expected the sum .* found their mean .*=\"sum\"; the"
    ):
        first_step(Terms("mean"))
    first_step(Terms("sum"))
    first_step(AlreadyDivided("mean"))


def test_a_wrong_split_would_be_noticed(whole):
    """The published way, loss / number of micro-batches, is far off for a coupled loss: the oracle can tell."""
    torch.manual_seed(0)
    model, loss = ranks.Tiny(), ranks.build_loss("milnce")
    for start in (0, 6):
        batch = {k: v[start : start + 6] for k, v in ranks.data("milnce").items()}
        outputs = model(batch["x"], batch["text"])
        (loss(outputs["video_embed"], outputs["text_embed"]) / 2).backward()
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert relative_error(got, {n: 2 * whole[("milnce",)]["gradient"][n] for n in got}) > 0.2


def test_dropout_is_the_same_for_any_ranks_with_as_many_chunks(split):
    expected = ranks.gradient(["cross_entropy", "milnce"], 6, True, dropout=0.4)
    for world in (2, 3):
        got = split[world]["dropout"]
        assert relative_error(got["gradient"], expected["gradient"]) <= 1e-5
    other = ranks.gradient(["cross_entropy", "milnce"], 6, True, dropout=0.4, seed=8)
    assert relative_error(other["gradient"], expected["gradient"]) > 0.01


def test_two_and_three_ranks_train_s3d_on_narrated_clips_like_one(split):
    expected = ranks.narrated_gradient(1)
    for got in (split[2]["narrated"], split[3]["narrated"], ranks.narrated_gradient(4)):
        assert relative_error(got["gradient"], expected["gradient"]) <= 1e-5
        assert got["values"] == pytest.approx(expected["values"], rel=1e-6)


def test_a_micro_batch_seeds_the_generators_of_the_cpu_and_of_its_device_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(manual_seed=seeded.append))
    monkeypatch.setattr(torch, "manual_seed", None)
    seed_chunk(7, 1, 2, torch.device("cuda", 1))
    first = torch.initial_seed(), torch.rand(3).tolist()
    seed_chunk(7, 1, 2)
    assert (torch.initial_seed(), torch.rand(3).tolist()) == first
    assert seeded == [first[0]]
    seed_chunk(7, 1, 3)
    assert torch.rand(3).tolist() != first[1]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_replay_uses_the_same_dropout_masks(micro_batches, monkeypatch):
    """Two passes = one pass of plain autograd with the same random states; the last micro-batch is run once."""
    calls, plain = [], ranks.Tiny.forward
    monkeypatch.setattr(ranks.Tiny, "forward", lambda model, x, text: calls.append(len(x)) or plain(model, x, text))
    got = ranks.gradient(["milnce"], micro_batches, True, dropout=0.4)
    assert len(calls) == 2 * micro_batches - 1
    torch.manual_seed(0)
    model, loss = ranks.Tiny(dropout=0.4), ranks.build_loss("milnce")
    batch, outputs = ranks.data("milnce"), []
    size = len(batch["x"]) // micro_batches
    for m in range(micro_batches):
        seed_chunk(7, 1, m)
        outputs.append(model(*(batch[name][m * size : (m + 1) * size] for name in ("x", "text"))))
    joined = [torch.cat([o[name] for o in outputs]) for name in ("video_embed", "text_embed")]
    (0.5 * loss(*joined)).backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert relative_error({n: got["gradient"][n] for n in expected}, expected) <= 1e-6


def test_activation_checkpointing_changes_nothing():
    losses = ["cross_entropy", "informative"]
    plain = ranks.gradient(losses, 3, False, dropout=0.3)
    recomputed = ranks.gradient(losses, 3, False, dropout=0.3, recompute=True)
    assert relative_error(recomputed["gradient"], plain["gradient"]) <= 1e-6


def test_batch_norm_statistics_move_once():
    once = ranks.gradient(["cross_entropy"], 2, True, norm=True)["statistics"]
    replayed = ranks.gradient(["cross_entropy", "milnce"], 2, True, norm=True)["statistics"]
    assert once["norm.num_batches_tracked"] == 2
    for name, value in once.items():
        torch.testing.assert_close(replayed[name], value)


def test_bfloat16_autocast_keeps_the_split_close():
    whole_batch = ranks.gradient(["milnce"], 1, True, dtype=torch.bfloat16)
    split_up = ranks.gradient(["milnce"], 4, False, dtype=torch.bfloat16)
    assert relative_error(split_up["gradient"], whole_batch["gradient"]) < 0.02


@pytest.mark.parametrize("world", [1, 2])
def test_contrastive_losses_as_published_on_one_and_two_ranks(split, world):
    """LaViLa's ranks hold `world` times their part of the mean that DDP makes; MIL-NCE's have 1 / world of it."""
    found = split[world]["published"] if world > 1 else ranks.published_gradients()
    case, atol, rtol = load_case(GOLDEN / "lavila/losses_2_ranks.pt"), *limits(load_case(GOLDEN / "lavila/losses.pt"))
    keys = {"clip": "clip+use_vissl=True", "ssl": "ssl+use_vissl=True"}
    keys |= {"max_margin": "max_margin+margin=0.2", "adaptive_max_margin": "adaptive_max_margin+margin=0.4"}
    for name, key in keys.items():
        expected, got = case["expected"][key], found[name]
        for part in ("video", "text"):
            joined = torch.cat([of_rank[f"grad_{part}"] for of_rank in expected]) / 2
            assert_close(got[part], joined, atol, rtol, f"{name} {part}")
        assert got["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)
        assert got["top1"] == (expected[0]["clip_acc"] / 100 if "clip_acc" in expected[0] else None)
        for scale, published in {"log_scale": "logit_scale", "log_pseudo_scale": "logit_scale_pseudo"}.items():
            if scale in got:
                assert float(got[scale]) == pytest.approx(expected[0][f"grad_{published}"], rel=1e-5, abs=1e-6)
    case = load_case(GOLDEN / "milnce/gathered_loss_2_ranks.pt")
    for name, key in (("milnce", "grads"), ("milnce_gathered", "grads_ranks")):
        assert_close(found[name], case["expected"][key], *limits(case))
        assert found[name]["loss"] == pytest.approx(float(case["expected"]["loss"]), rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_norton_as_published_in_four_micro_batches_of_one_and_two_ranks(split, world):
    found = (split[world]["published"] if world > 1 else ranks.published_gradients())["norton"]
    case = load_case(GOLDEN / "norton/loss_threshold_4_alpha_half.pt")
    got = {"loss": found["loss"], **{f"grad_{kind}_outputs": found[kind] for kind in ("video", "text")}}
    check(case | {"expected": {name: case["expected"][name] for name in got}}, got)


def test_the_published_gather_is_a_factor_of_the_exact_gradient():
    """Two ranks of MultiTrain had half the gradient; ours have all of it, and half of it with `gradient_factor`."""
    case = load_case(GOLDEN / "multitrain/gather_before_loss.pt")
    (expected,) = (c for c in case["expected"]["cases"] if c["loss"] == "informative")
    atol, rtol = limits(case)
    for factor, wanted in ((1.0, "full_batch_grad"), (0.5, "two_rank_grad")):
        model = ranks.Projected(case["inputs"]["weight"])
        objective = Objective({"informative": Informative(None)}, {"informative": 1.0}, factor)
        batches = [{"x": x, "index": torch.arange(8)} for x in case["inputs"]["x"].split(8)]
        values = backward(
            model, objective, batches, clip=ranks.CLIP, precision=Precision(torch.device("cpu")), seed=0, step=0
        )
        assert_close(model.weight.grad, expected[wanted], atol, rtol)
        assert values["loss"] == pytest.approx(float(expected["full_batch_loss"]), rel=1e-5)
