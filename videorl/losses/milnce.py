"""MIL-NCE: of several captions near a clip, at least one should fit.

Miech et al., End-to-End Learning of Visual Representations from Uncurated Instructional Videos, CVPR 2020;
antoine77340/MIL-NCE_HowTo100M (loss.py).
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videorl.registry import LOSSES

AT_ONCE = 2**22  # similarities kept in memory; all of 8,192 clips with 4 captions each are 64 times as many


@LOSSES.register("milnce")
class MILNCE(nn.Module):
    """mean_i [ logsumexp of {v_i·t_jk, v_j·t_ik for all j, k} - logsumexp_k v_i·t_ik ].

    The positives stand in the denominator twice, once as row and once as column, as in the published code: the floor is
    ln 2. Embeddings are not normalised and there is no temperature.
    """

    coupled = True

    def __init__(self, spec):
        super().__init__()

    def forward(self, video_embed: Tensor, text_embed: Tensor) -> Tensor:
        """video_embed [B, D], text_embed [B, K, D] (K candidate captions of each clip) -> scalar."""
        texts = text_embed.flatten(0, 1)
        size = max(1, AT_ONCE // len(texts))
        if size >= len(video_embed):
            return _terms(video_embed, text_embed, video_embed, texts).mean()
        blocks = zip(video_embed.split(size), text_embed.split(size), strict=True)
        terms = [checkpoint(_terms, v, t, video_embed, texts, use_reentrant=False) for v, t in blocks]
        return torch.cat(terms).mean()


def _terms(video: Tensor, text: Tensor, videos: Tensor, texts: Tensor) -> Tensor:
    """The terms [b] of clips `video` [b, D] with captions `text` [b, K, D], among all: [B, D] and [B * K, D]."""
    of_video, of_text = video @ texts.T, (text @ videos.T).flatten(1)  # [b, B * K]
    positives = torch.einsum("id,ikd->ik", video, text)
    return torch.logaddexp(of_video.logsumexp(1), of_text.logsumexp(1)) - positives.logsumexp(1)
