"""What TensorBoard shows beside curves: training clips as the model sees them, and the confusion matrix."""

import numpy as np
import torch

from videorl.clip import regions
from videorl.metrics.classification import confusion


def clip_strip(batch: dict, clips: int = 4) -> np.ndarray:
    """uint8 [3, clips * H, T * W]: frames of the first clips of a batch, a row each.

    The batch holds `video`, or `pixels` where clips are masked: [B, T, 3, H, W] uint8; or what these are made of.
    """
    if "regions" in batch:
        video = regions.clips(batch["regions"], batch["cuts"][:clips])
    else:
        video = batch["video" if "video" in batch else "pixels"][:clips]
    n, t, c, h, w = video.shape
    return video.permute(2, 0, 3, 1, 4).reshape(c, n * h, t * w).numpy()


def confusion_picture(scores: np.ndarray, labels: np.ndarray, least_side: int = 256) -> np.ndarray:
    """uint8 [3, S, S]: row = label, column = prediction, white = the whole class. scores [N, C], labels [N]."""
    table = confusion(scores.argmax(1), labels, scores.shape[1])
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    scale = max(1, least_side // len(share))
    grey = torch.from_numpy((255 * share).astype(np.uint8)).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return grey.expand(3, -1, -1).numpy()
