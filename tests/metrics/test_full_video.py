"""Retrieval of whole videos against the published figures, brute force over paths, and tslearn-like references."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from videorl.metrics.full_video import KINDS, dtw, full_video_metrics, full_video_scores, otam, padded

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import check, load_case  # noqa: E402

PUBLISHED = {"": "cap_avg", "DTW-": "dtw_published", "OTAM-": "otam_published"}


def named_as_published(found: dict) -> dict:
    return {f"{theirs}R{k}": found[f"{ours}_r{k}"] for theirs, ours in PUBLISHED.items() for k in (1, 5)}


def lengths(ids: list[str]) -> list[int]:
    return [len(list(group)) for _, group in itertools.groupby(ids)]


@pytest.mark.parametrize("background", [False, True])
def test_figures_as_published(background):
    case = load_case(GOLDEN / "metrics/full_video_retrieval.pt")
    given = case["inputs"]
    if background:
        scores, captions, clips = (given[k] for k in ("background_scores", "text_lengths", "video_lengths"))
    else:
        scores, captions = given["scores"], lengths(given["ids"])
        clips = captions
    found = named_as_published(full_video_metrics(scores.numpy(), captions, clips, background))
    expected = case["expected"]["background" if background else "full"]
    check(case | {"expected": {name: expected[name] for name in found}}, found)


def test_paths_as_published():
    case = load_case(GOLDEN / "metrics/full_video_retrieval.pt")
    for given, expected in zip(case["inputs"]["primitives"], case["expected"]["primitives"], strict=True):
        costs, (rows, columns) = given["distance"][0].numpy(), given["pad_to"]
        square = padded(costs, rows, columns)
        framed = padded(np.pad(costs, ((0, 0), (0, 0), (1, 1))), rows, columns + 2)
        found = {"dtw_padded": square, "dtw": dtw(square), "otam_padded": framed, "otam": otam(framed)}
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name][0].numpy(), rtol=1e-6)


def cheapest(costs: np.ndarray, steps_from) -> float:
    """Over all paths from a corner of costs [n, m] to the other, by recursion."""

    def to(i, j):
        before = [to(*cell) for cell in steps_from(i, j) if min(cell) >= 0]
        return costs[i, j] + (min(before) if before else 0.0)

    return to(costs.shape[0] - 1, costs.shape[1] - 1)


def test_unpadded_paths_are_the_cheapest():
    draw = np.random.default_rng(0)
    blocks = draw.normal(size=(2, 3, 4))
    captions, clips = [3, 3], [4, 4]
    scores = np.block([[blocks[0], blocks[1]], [blocks[1], blocks[0]]])
    tables = full_video_scores(scores, captions, clips, background=False)
    any_step = lambda i, j: [(i - 1, j), (i, j - 1), (i - 1, j - 1)]  # noqa: E731
    by_hand = [-cheapest(-block, any_step) / 12 for block in blocks]
    np.testing.assert_allclose(tables["dtw"], [by_hand, by_hand[::-1]])

    def both(block):
        total = 0.0
        for way in (-block, -block.T):
            # Each column once, in any rows that rise: the path begins and ends where it likes.
            last = way.shape[1]
            down_at_ends = lambda i, j: [(i, j - 1), (i - 1, j - 1)] + [(i - 1, j)] * (j in (1, last + 1))  # noqa: E731, B023
            framed = np.pad(way, ((0, 0), (1, 1)))

            def to(i, j):
                if j == 0:
                    return 0.0
                cells = [c for c in down_at_ends(i, j) if c[0] >= 0]  # noqa: B023
                return framed[i, j] + min(to(*c) for c in cells)  # noqa: B023

            total += to(way.shape[0] - 1, last + 1)
        return total

    np.testing.assert_allclose(tables["otam"][0], [-both(block) / 12 for block in blocks])
    assert not np.allclose(tables["dtw"], tables["dtw_published"])


def test_transport_and_the_other_ways_find_the_video_of_a_text():
    draw = np.random.default_rng(1)
    captions, clips = [3, 5, 4, 2], [6, 7, 5, 6]
    scores = draw.normal(size=(14, 24)) * 0.1
    for text, video in zip(np.split(np.arange(14), np.cumsum(captions)[:-1]), np.cumsum([0, *clips[:-1]])):
        scores[text, video + np.arange(len(text))] += 1.5
    found = full_video_metrics(scores, captions, clips, background=True)
    assert {kind: found[f"{kind}_r1"] for kind in KINDS if "published" not in kind} == dict.fromkeys(
        ("cap_avg", "dtw", "otam", "ot"), 1.0
    )
    names = {f"{kind}_{name}" for kind in KINDS for name in ("r1", "medr")}
    assert found.keys() == names
