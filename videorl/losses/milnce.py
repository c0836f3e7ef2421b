"""MIL-NCE: of several captions near a clip, at least one should fit.

Miech et al., End-to-End Learning of Visual Representations from Uncurated Instructional Videos, CVPR 2020;
antoine77340/MIL-NCE_HowTo100M (loss.py).
"""

import torch
from torch import Tensor, nn

from videorl.registry import LOSSES


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
        similarity = torch.einsum("id,jkd->ijk", video_embed, text_embed)
        both = torch.cat([similarity, similarity.transpose(0, 1)], dim=2).flatten(1)
        positives = similarity.diagonal().T  # [B, K]
        return (both.logsumexp(1) - positives.logsumexp(1)).mean()
