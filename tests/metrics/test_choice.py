"""EgoMCQ against the golden case of LaViLa, whose two names are swapped, and by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

from videorl.metrics.choice import accuracy_by_type, choice_scores

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402


def test_published_figures_under_their_right_names():
    case = load_case(GOLDEN / "metrics/egomcq.pt")
    found = accuracy_by_type(*(case["inputs"][name].numpy() for name in ("scores", "labels", "types")))
    assert 100 * found["inter"] == pytest.approx(case["expected"]["type1"], abs=1e-5)
    assert 100 * found["intra"] == pytest.approx(case["expected"]["type2"], abs=1e-5)


def test_a_tie_is_wrong_and_no_question_has_no_accuracy():
    scores = np.array([[1.0, 1, 0], [0, 1, 0], [np.nan, np.nan, np.nan]])
    found = accuracy_by_type(scores, np.array([0, 1, 0]), np.array([1, 1, 1]))
    assert found["inter"] == pytest.approx(1 / 3)
    assert np.isnan(found["intra"])


@pytest.mark.parametrize("cosine", [False, True])
def test_dot_product_and_cosine(cosine):
    random = np.random.default_rng(0)
    texts, clips = random.normal(size=(6, 8)), random.normal(size=(6, 5, 8)) * random.uniform(0.1, 9, (6, 5, 1))
    found = choice_scores(texts, clips, cosine=cosine)
    for text, of_one, row in zip(texts, clips, found, strict=True):
        length = [np.sqrt(text @ text) * np.sqrt(clip @ clip) if cosine else 1.0 for clip in of_one]
        assert row == pytest.approx([text @ clip / by for clip, by in zip(of_one, length, strict=True)])
    other = choice_scores(texts, clips, cosine=not cosine)
    assert (found.argmax(1) != other.argmax(1)).any()
