"""Which video does a sequence of sentences tell of? YouCook2's whole videos, as VideoCLIP and Norton evaluate them."""

import numpy as np
import torch

from videorl.evals.retrieval import embeddings
from videorl.metrics import HIGHER, LOWER
from videorl.metrics.full_video import KINDS, full_video_metrics
from videorl.registry import EVALS, UserError

TEXTS = 256  # embedded at a time


@EVALS.register("full_video")
class FullVideo:
    """Retrieval of a whole video by the sentences of all its steps, from dot products of sentences and clips.

    Samples of a `story` are clips of one video, each with its sentence: "background removed". Or the data set has
    `captions`, and the samples are windows over whole videos: with background, and with frames that do not attend to
    [CLS], as published. Metrics, `_r1`, of more videos than that `_r5` and `_r10`, and `_medr`, for each way to
    compare: `cap_avg`, `dtw`, `dtw_published`, `otam`, `otam_published`, `ot` (see `metrics/full_video.py`). A clip
    that cannot be read is left out, and so is its sentence.
    """

    metrics = {
        f"{kind}_{name}": LOWER if name == "medr" else HIGHER for kind in KINDS for name in ("r1", "r5", "r10", "medr")
    }

    def __init__(self, spec):
        if spec.views.clips * spec.views.crops != 1:
            raise UserError("full_video reads one view of a clip: set CLIPS 1 and CROPS 1 in its entry of EVALS")
        self.sizes, self.texts = "", None  # of the last evaluation

    @property
    def protocol(self) -> str:
        return f"retrieval of whole videos by their sentences{self.sizes}, dot product, ties count against the query"

    def begin(self, model, dataset) -> None:
        """Embeds the sentences of a data set of windows."""
        captions = getattr(dataset, "captions", [])
        self.texts = None
        if captions:
            device = next(model.parameters()).device
            stories, texts = zip(*captions)
            parts = [dataset.texts(list(texts[k : k + TEXTS])) for k in range(0, len(texts), TEXTS)]
            embeds = [model.embed_text(p["text"].to(device), p["text_mask"].to(device))["text_embed"] for p in parts]
            self.texts = np.array(stories), torch.cat(embeds).float().cpu().numpy()

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: index, story, video_embed and, without background, text_embed [B, D]."""
        if "story" not in batch:
            raise UserError("full_video needs clips of whole videos: youcook2_features or youcook2_windows")
        rows = {"index": batch["index"], "story": batch["story"]}
        if self.texts is None:
            return rows | embeddings(model, batch)
        found = model.embed_video(batch["video_features"], batch["video_mask"], attend_cls=False)
        return rows | {"video_embed": found["video_embed"].float()}

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and of each sample its index and story."""
        background = self.texts is not None
        stories, texts = self.texts if background else (rows["story"], rows["text_embed"])
        numbers, clips = np.unique(rows["story"], return_counts=True)
        told = np.isin(stories, numbers)
        stories, texts = stories[told], texts[told]
        captions = np.unique(stories, return_counts=True)[1]
        by_story = np.argsort(rows["story"], kind="stable")
        scores = texts[np.argsort(stories, kind="stable")] @ rows["video_embed"][by_story].T
        seen = "with background" if background else "background removed"
        self.sizes = f", {seen} ({len(numbers)} videos, {len(texts)} sentences, {len(by_story)} clips)"
        metrics = full_video_metrics(scores, captions.tolist(), clips.tolist(), background)
        return metrics, {"index": rows["index"], "story": rows["story"]}
