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


@pytest.mark.slow
def test_milnce_finds_unseen_clips_by_text_and_its_features_tell_directions():
    found = results("toy_milnce")
    assert min(found[name]["t2v_r1"] for name in ("youcook2", "msrvtt")) >= 0.6
    assert found["hmdb51"]["top1"] >= 0.85


@pytest.mark.slow
def test_milnce_with_one_candidate_caption_is_worse_than_with_several():
    several, one = results("toy_milnce"), results("toy_milnce_k1")
    for name in ("youcook2", "msrvtt"):
        assert one[name]["t2v_r1"] < several[name]["t2v_r1"] - 0.1


@pytest.mark.slow
def test_videomae_predicts_hidden_pixels_better_than_the_mean_of_their_patch():
    assert results("toy_videomae_pt")["val"]["explained"] >= 0.1


@pytest.mark.slow
def test_videomae_learns_motions_from_few_labels_and_random_weights_do_not():
    pretrained, scratch = (results(f"toy_videomae_{name}")["test"]["top1"] for name in ("ft", "scratch"))
    assert pretrained >= 0.9
    assert pretrained >= scratch + 0.1
