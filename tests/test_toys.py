"""What the long toy runs (`make toys`) leave behind: each system learns what it is for."""

import json
from pathlib import Path

import pytest

RUNS = Path(__file__).parents[1] / "runs"


def results(name: str) -> dict[str, dict[str, float]]:
    file = RUNS / name / "results.json"
    if not file.exists():
        pytest.skip(f"needs {file.parent}, which `make toys` makes")
    return json.loads(file.read_text())["evals"]


@pytest.mark.slow
def test_one_model_learns_three_label_spaces():
    found = results("toy_multitrain")
    assert found.keys() == {"test_motion", "test_shape_motion", "test_speed_direction", "test"}
    assert min(metrics["top1"] for metrics in found.values()) >= 0.9
    assert all(metrics["n"] == metrics["of"] for metrics in found.values())
