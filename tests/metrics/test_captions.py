"""Metrics of captions against the golden figures of coco-caption."""

import sys
from pathlib import Path

import pytest

from videorl.metrics import captions

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402

CASE = load_case(GOLDEN / "narrator/caption_metrics.pt")
HYPOTHESES, OWN = CASE["inputs"]["hypotheses"], CASE["inputs"]["references"]
REFERENCES = {
    "one_reference": [[text] for text in OWN],
    "two_references": [[text, other] for text, other in zip(OWN, OWN[1:] + OWN[:1])],
}
close = {"rel": 1e-6, "abs": 1e-6}


@pytest.mark.parametrize("case", REFERENCES)
def test_golden(case):
    references, expected = REFERENCES[case], CASE["expected"][case]
    assert captions.bleu(HYPOTHESES, references) == pytest.approx(expected["bleu"], **close)
    rouge = [captions.rouge_l(*pair) for pair in zip(HYPOTHESES, references)]
    assert rouge == pytest.approx(expected["rouge_l_each"], **close)
    cider = captions.cider(HYPOTHESES, references)
    assert cider.tolist() == pytest.approx(expected["cider_each"], **close)
    assert cider.mean() == pytest.approx(expected["cider"], **close)
    if captions.meteor_is_here():
        total, each = captions.meteor(HYPOTHESES, references)
        assert total == pytest.approx(expected["meteor"], **close)
        assert each.tolist() == pytest.approx(expected["meteor_each"], **close)


def test_an_empty_text_scores_nothing_and_clips_may_have_different_numbers_of_references():
    hypotheses, references = ["", "a b c d e"], [["a b", "c"], ["a b c d e"]]
    assert [captions.rouge_l(*pair) for pair in zip(hypotheses, references)] == [0.0, 1.0]
    assert captions.rouge_l("a", [""]) == 0.0
    assert captions.cider(hypotheses, references).tolist() == pytest.approx([0.0, 10.0])
    assert 0 < captions.bleu(hypotheses, references)[3] < 1


def test_facts_are_a_set_of_meanings():
    words = {"golden": "yellow", "yellow": "yellow", "up": "up"}
    assert captions.facts_of("the golden yellow hoop goes up", words) == ("up", "yellow")
