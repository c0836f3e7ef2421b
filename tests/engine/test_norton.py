"""Norton's published training, from shards of features over clips, model and loss to the weights after four steps."""

import random
import sys
from pathlib import Path

import pytest
import torch

from videorl.data.features import Features
from videorl.engine.objective import Objective
from videorl.engine.step import Precision, backward
from videorl.loading.worker import collate
from videorl.losses.transport import Norton
from videorl.spec import Clip

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "golden"), str(TESTS / "models"), str(TESTS / "data")]
import norton  # noqa: E402
import videoclip  # noqa: E402
from recipe import check, load_case  # noqa: E402


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_four_steps_as_published(tmp_path, monkeypatch, micro_batches):
    case = load_case(TESTS / "golden/norton/training_steps.pt")
    spec = norton.spec(tmp_path / "vocab.txt", case["config"]["vocabulary"])
    dataset = Features(spec, "train", **norton.published(tmp_path))
    rng = random.Random(case["config"]["python_seed"])
    monkeypatch.setattr(dataset, "_random", lambda i: rng)
    case["config"]["bert"] = case["config"]["model"]
    model = videoclip.tiny(case, dropout=0.0, train="layer_norms").train()
    objective = Objective({"norton": Norton(None)}, {"norton": 1.0})
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3, betas=(0.9, 0.98))
    found = {"loss": [], "grad_norm": [], "trainable": sorted(trained)}
    for step in case["inputs"]["steps"]:
        clips = [dataset[int(name[2:])] for name in step["video_id"]]
        size = len(clips) // micro_batches
        batches = [collate(sum(clips[k : k + size], [])) for k in range(0, len(clips), size)]
        optimizer.zero_grad()
        values = backward(
            model, objective, batches, clip=Clip(2, 1, 4, 4), precision=Precision(torch.device("cpu")), seed=0, step=0
        )
        found["loss"].append(values["loss"])
        found["grad_norm"].append(float(torch.nn.utils.clip_grad_norm_(trained.values(), 2.0)))
        optimizer.step()
    expected = case["expected"] | {"trainable": sorted(case["expected"]["trainable"])}
    check(case | {"expected": expected}, found | {"final": {name: p.detach() for name, p in trained.items()}})
