"""Zero-shot retrieval: windows averaged, both directions, and no clip lost or doubled on several ranks."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.data.narrated import FOLDER
from videorl import config, dist
from videorl.engine import build
from videorl.engine.evaluate import Evaluation
from videorl.evals.retrieval import Retrieval
from videorl.metrics.retrieval import ranks, summary
from videorl.registry import UserError
from videorl.spec import Clip, Masking, Spec, Views


def retrieval(clips: int) -> Retrieval:
    return Retrieval(Spec(Clip(16, 1, 48, 48), views=Views(clips)))


def as_rows(videos: np.ndarray, texts: np.ndarray, groups=None) -> dict[str, np.ndarray]:
    """Rows sorted by (index, view) from videos [N, V, D], texts [N, D] and the clips [N] that they are of."""
    n, views = videos.shape[:2]
    return {
        "index": np.repeat(np.arange(n) * 2, views),
        "view": np.tile(np.arange(views), n),
        "video_embed": videos.reshape(n * views, -1),
        "text_embed": np.repeat(texts, views, 0),
        "group": np.repeat(np.arange(n) * 2 if groups is None else groups, views),
    }


def test_windows_are_averaged_and_both_directions_ranked():
    random = np.random.default_rng(0)
    videos, texts = random.normal(size=(30, 4, 8)), random.normal(size=(30, 8))
    found, per_sample = retrieval(4).finish(as_rows(videos, texts))
    scores = np.array([[sum(text @ window for window in windows) / 4 for windows in videos] for text in texts])
    wanted = {"t2v": ranks(scores), "v2t": ranks(scores.T)}
    for way, r in wanted.items():
        assert {k: found[f"{way}_{k}"] for k in ("r1", "r5", "r10", "medr")} == summary(r, 30)
        assert per_sample[f"{way}_rank"].tolist() == r.tolist()
    assert not np.array_equal(wanted["t2v"], wanted["v2t"])
    assert per_sample["index"].tolist() == list(range(0, 60, 2))


def ranks_slowly(scores: dict, queries: list, items: list, own) -> list[int]:
    """Items by falling score, those of others first among equals: the place of the first that is the query's own."""
    found = []
    for q in queries:
        order = sorted(items, key=lambda i: (-scores[q, i], own(q, i)))
        found.append(1 + next(place for place, i in enumerate(order) if own(q, i)))
    return found


@pytest.mark.parametrize("integers", [False, True])
def test_several_texts_of_a_clip(integers):
    """12 clips, one to four texts each, in any order; with integers there are many ties."""
    random = np.random.default_rng(1)
    draw = lambda *size: (random.integers(-1, 2, size) if integers else random.normal(size=size)) * 1.0  # noqa: E731
    groups = random.permutation(np.repeat(np.arange(12) * 7, random.integers(1, 5, 12)))
    clips, texts = {g: draw(2, 4) for g in groups}, draw(len(groups), 4)
    evaluation = retrieval(2)
    found, per_sample = evaluation.finish(as_rows(np.stack([clips[g] for g in groups]), texts, groups))
    samples, unique = list(range(len(groups))), sorted(set(groups))
    scores = {(i, g): float(texts[i] @ clips[g].mean(0)) for i in samples for g in unique}
    t2v = ranks_slowly(scores, samples, unique, lambda i, g: groups[i] == g)
    turned = {(g, i): score for (i, g), score in scores.items()}
    v2t = ranks_slowly(turned, unique, samples, lambda g, i: groups[i] == g)
    assert per_sample["t2v_rank"].tolist() == t2v
    assert per_sample["v2t_rank"].tolist() == [v2t[unique.index(g)] for g in groups]
    assert found["t2v_r5"] == np.mean(np.array(t2v) <= 5)
    assert found["v2t_r5"] == np.mean(np.array(v2t) <= 5), "of clips, not of texts"
    assert found["v2t_medr"] == np.median(v2t)
    assert f"({len(unique)} clips, {len(groups)} texts)" in evaluation.protocol


def test_a_perfect_model_is_perfect_with_several_texts_too():
    groups = np.repeat(np.arange(6), 2)
    embeddings = np.eye(6)[groups]
    found, _ = retrieval(1).finish(as_rows(embeddings[:, None], embeddings, groups))
    assert (found["t2v_r1"], found["v2t_r1"], found["t2v_medr"]) == (1.0, 1.0, 1.0)
    assert "t2v_r10" not in found, "of six clips ten are all"
    assert found.keys() <= Retrieval.metrics.keys()


def test_several_texts_in_one_sample_are_refused():
    batch = {name: torch.zeros(2, 3, 4, dtype=torch.int64) for name in ("video", "text", "index", "view")}
    outputs = {"video_embed": torch.randn(2, 5), "text_embed": torch.randn(2, 3, 5)}
    with pytest.raises(UserError, match="one text a sample, found 3"):
        retrieval(1).step(lambda video, text: outputs, batch)


def test_masked_clips_are_refused():
    with pytest.raises(UserError, match="retrieval reads whole clips, found MASK.RATIO 0.9"):
        Retrieval(Spec(Clip(1, 1, 1, 1), masking=Masking(0.9)))


def test_embeddings_are_not_normalised():
    videos, texts = np.array([[[1.0, 0]], [[9.0, 1]]]), np.array([[1.0, 0], [0, 1.0]])
    found, _ = retrieval(1).finish(as_rows(videos, texts))
    assert found["t2v_r1"] == 0.5, "the longer video wins the first query"


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 5)])
def test_a_row_for_each_window(shape):
    batch = {
        "video": torch.zeros(2, 3, 2, 8, 8),
        "text": torch.ones(2, 1, 7, dtype=torch.int64),
        "index": torch.tensor([3, 3]),
        "view": torch.tensor([0, 1]),
    }
    outputs = {"video_embed": torch.randn(2, 5).half(), "text_embed": torch.randn(shape)}
    rows = retrieval(2).step(lambda video, text: outputs, batch)
    assert rows["video_embed"].dtype == torch.float32
    assert rows["text_embed"].shape == (2, 5)
    assert torch.equal(rows["index"], batch["index"])


def test_the_protocol_in_words():
    assert "all texts, 10 windows averaged, dot product" in retrieval(10).protocol
    assert "1 window," in retrieval(1).protocol


# ---- in the engine ---------------------------------------------------------------------------------------------------


class Towers(nn.Module):
    """Something that depends on every pixel and word."""

    def forward(self, video, text=None):
        pixels = video.mean((2, 3)).flatten(1)[:, :96]  # [B, 96]
        words = torch.nn.functional.one_hot(text[:, 0] % 96, 96).sum(1)
        return {"video_embed": pixels, "text_embed": words[:, None].float()}


@pytest.fixture
def evaluation(tmp_path, monkeypatch) -> Evaluation:
    """YouCook2 with seven clips, one of which cannot be read."""
    rows = [f"{start + 4},{start},{226 if start != 3 else 'none'},{word},ycA" for start, word in enumerate("abcdefg")]
    (tmp_path / "youcook.csv").write_text("end,start,task,text,video_id\n" + "\n".join(rows) + "\n")
    np.save(tmp_path / "dict.npy", np.array(list("abcdefg")))
    words = {
        "TRAIN.DATASET": "youcook2",
        "YOUCOOK2.ANNOTATIONS": tmp_path / "youcook.csv",
        "YOUCOOK2.VIDEO_ROOT": FOLDER / "videos",
        "TEXT.DICT": tmp_path / "dict.npy",
        "DATA.NUM_FRAMES": 4,
        "DATA.SAMPLING_RATE": 1,
        "DATA.TARGET_FPS": 5,
        "DATA.TEST_CROP_SIZE": 32,
        "DATA.MAX_BAD_FRACTION": 0.2,
        "DATA_LOADER.NUM_WORKERS": 0,
        "EVALS.cook.NAME": "retrieval",
        "EVALS.cook.DATASET": "youcook2",
        "EVALS.cook.CLIPS": 3,
        "EVALS.cook.BATCH_SIZE": 6,
    }
    cfg = config.load([], [str(word) for pair in words.items() for word in pair])
    return Evaluation(cfg, "cook")


def test_ranks_share_the_clips_and_none_is_lost(evaluation, monkeypatch):
    precision = build.precision(evaluation.cfg)
    alone = evaluation.run(Towers(), precision)
    assert (alone["n"], alone["of"]) == (6, 7)
    rows_alone = evaluation.per_sample
    for world in (2, 3, 5):
        monkeypatch.setattr(dist, "world_size", lambda world=world: world)
        gathered = []
        for rank in range(world):
            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            gathered.append(evaluation._rows(Towers(), precision, lambda doing: None))
        monkeypatch.undo()
        bad = {index: row for _, of_rank in gathered for index, row in of_rank.items()}
        assert evaluation._finish([rows for rows, _ in gathered if rows], bad, None) == alone
        assert all(np.array_equal(evaluation.per_sample[k], rows_alone[k]) for k in rows_alone)
