"""LaViLa's published training over six steps: clips and texts through model, InfoNCE and AdamW to the weights."""

import sys
from pathlib import Path

import pytest
import torch

from videorl import config, convert
from videorl.engine.objective import Objective
from videorl.engine.optim import build_optimizer, lr_at
from videorl.engine.step import Precision, backward
from videorl.losses.infonce import InfoNCE
from videorl.spec import Clip

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "golden"), str(TESTS / "models")]
from recipe import check, load_case  # noqa: E402
from test_dual import lavila  # noqa: E402

SOLVER = {"BASE_LR": 3e-3, "COSINE_END_LR": 1e-3, "LR_POLICY": "cosine", "MAX_EPOCH": 1}
AS_IT_IS = Clip(4, 1, 32, 32, mean=(0.0,) * 3, std=(1 / 255,) * 3)  # clips of the case are normalised


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("kind", ["clip", "ssl"])
def test_six_steps_as_published(kind, micro_batches):
    """The published loop never clears the gradient of the pseudo temperature: it is summed up here, too."""
    case = load_case(TESTS / "golden/lavila/training_steps.pt")
    typed = [word for key, value in SOLVER.items() for word in (f"SOLVER.{key}", str(value))]
    cfg = config.load([TESTS.parent / "configs/Ego4D/TSF_B_CLIP.yaml"], typed)
    model = lavila(case, text_vocabulary=case["config"]["vocab_size"]).train()
    learned = {"learn_temperature": False} if kind == "clip" else {"pseudo_temperature": 0.1}
    loss = InfoNCE(None, **learned)
    objective = Objective({"main": loss}, {"main": 1.0})
    optimizer = build_optimizer(cfg, model, objective)
    found, kept = {"losses": []}, 0.0
    videos, human = case["inputs"]["video"], case["inputs"]["is_human"]
    for step in range(len(videos)):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(cfg.SOLVER, step / len(videos), len(videos))
        whole = {"video": videos[step].transpose(1, 2), "text": case["inputs"]["ids"][step], "pseudo": human[step] == 0}
        size = len(videos[step]) // micro_batches
        batches = [{k: v[at : at + size] for k, v in whole.items()} for at in range(0, len(videos[step]), size)]
        optimizer.zero_grad()
        values = backward(
            model, objective, batches, clip=AS_IT_IS, precision=Precision(torch.device("cpu")), seed=0, step=0
        )
        if loss.log_pseudo_scale is not None:
            kept = kept + loss.log_pseudo_scale.grad
            loss.log_pseudo_scale.grad.copy_(kept)
        optimizer.step()
        found["losses"].append(values["loss"])
    order = convert.layout_of(case["state_dict"]).rename(case["state_dict"], model)
    own, expected = dict(model.named_parameters()), case["expected"][kind]
    published = dict(zip([n for n in case["state_dict"] if n != "logit_scale"], order))
    decayed = {name for group in optimizer.param_groups if group["weight_decay"] for name in group["names"]}
    assert {name for name, ours in published.items() if ours in decayed} == set(expected["decayed"])
    found["pseudo_logit_scale"] = loss.log_pseudo_scale
    found["final"] = {name: own[published[name]] for name in expected["final"] if name in published}
    found["final"]["logit_scale"] = loss.log_scale
    check({**case, "expected": expected}, found)
