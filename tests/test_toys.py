"""What the long toy runs (`make toys`) leave behind: each system learns what it is for."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from videorl.metrics.multi_instance import summary

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"


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


@pytest.mark.slow
def test_lavila_finds_unseen_moments_by_text():
    """Questions have five choices. Chance of the published mAP, in which part relevancies count, is measured."""
    found = results("toy_lavila")
    assert min(found["mcq"][name] for name in ("inter", "intra")) >= 0.85
    relevancy = pickle.loads((ROOT / "datasets/toy_ego/EPIC_100_retrieval_test.pkl").read_bytes())
    rng = np.random.default_rng(0)
    chance = np.mean([summary(rng.random(relevancy.shape), relevancy)["map"] for _ in range(20)])
    assert found["mir"]["map"] >= 3 * chance


@pytest.mark.slow
def test_narrations_of_a_machine_help_where_people_told_a_fifth():
    part, both = (results(f"toy_lavila_{name}")["mir"]["map"] for name in ("part", "both"))
    assert both >= part + 0.05


@pytest.mark.slow
def test_a_narrator_says_what_happens_in_unseen_videos():
    """Chance: one of 4 directions, of 8 colours, of 192 of these with a shape."""
    found = results("toy_narrator")["captions"]
    assert found["match_colour"] >= 0.9
    assert found["match_direction"] >= 0.6
    assert found["match_all"] >= 0.1
    assert found["n"] == found["of"]


@pytest.mark.slow
def test_norton_aligns_and_finds_whole_videos_at_least_as_well_as_infonce():
    norton, infonce = results("toy_norton"), results("toy_norton_infonce")
    assert norton["align"]["recall"] >= max(0.9, infonce["align"]["recall"])
    assert norton["background"]["dtw_r1"] >= max(0.9, infonce["background"]["dtw_r1"])
