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
        blocks = video_embed.split(max(1, AT_ONCE // len(texts)))
        if len(blocks) == 1:
            parts = [_sums(video_embed, texts, text_embed.shape[1])]
        else:
            parts = [checkpoint(_sums, block, texts, text_embed.shape[1], use_reentrant=False) for block in blocks]
        rows, columns = torch.cat([part[0] for part in parts]), torch.stack([part[1] for part in parts]).logsumexp(0)
        positives = torch.einsum("id,ikd->ik", video_embed, text_embed).logsumexp(1)
        return (torch.logaddexp(rows, columns) - positives).mean()


def _sums(videos: Tensor, texts: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Logarithms of the summed exponentials of the similarities of `[b, D]` and `[B * K, D]`: of each video `[b]`, and
    of all texts of each clip `[B]`."""
    scores = videos @ texts.T
    return scores.logsumexp(1), scores.unflatten(1, (-1, candidates)).logsumexp((0, 2))
