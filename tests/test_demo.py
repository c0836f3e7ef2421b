"""What `make demo` leaves behind: a model that knows motion, and nothing but motion."""

import json
from pathlib import Path

import pytest
import torch

from videorl import checkpoint, config
from videorl.engine import build
from videorl.engine.step import normalise
from videorl.spec import Views
from videorl.toy.scenes import MOTIONS

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs/toy"
OPPOSITE = {"left": "right", "up": "down", "grow": "shrink", "turn_clockwise": "turn_counterclockwise"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}

pytestmark = pytest.mark.skipif(not (RUN / "results.json").exists(), reason="needs the trained model of `make demo`")


@pytest.fixture(scope="module")
def demo():
    """Clips [N, 3, T, H, W] of the validation set, their labels, and the trained model's scores for any such clips."""
    overrides = ["DATA.PATH_TO_DATA_DIR", str(ROOT / "datasets/toy"), "NUM_GPUS", "0"]
    cfg = config.load([ROOT / "configs/toy/mvit.yaml"], overrides)
    model = build.model(cfg).eval()
    model.load_state_dict(checkpoint.read(RUN / "checkpoints/best.pyth")["model_state"])
    data = build.dataset(cfg, "kinetics", "val", Views(1, 1))
    items = [data[i][0] for i in range(len(data))]
    clips = normalise(torch.stack([item["video"] for item in items]), config.spec(cfg).clip)

    def predict(clips):
        with torch.inference_mode():
            return torch.cat([model(part)["logits"].argmax(1) for part in clips.split(16)])

    return clips, torch.stack([item["labels"] for item in items]), predict


def test_validation_top1_is_at_least_95_percent():
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "eval" and row["name"] == "val"][-1]
    assert last["top1"] >= 0.95
    assert last["n"] == last["of"]


def test_a_single_frame_tells_nothing(demo):
    clips, labels, predict = demo
    middle = clips[:, :, 3:4].expand_as(clips)
    assert (predict(clips) == labels).float().mean() >= 0.95
    assert (predict(middle) == labels).float().mean() <= 0.25


def test_reversed_clips_are_seen_as_the_opposite_motion(demo):
    clips, labels, predict = demo
    names = list(MOTIONS)
    opposite = torch.tensor([names.index(OPPOSITE[name]) for name in names])
    assert (predict(clips.flip(2)) == opposite[labels]).float().mean() >= 0.9
