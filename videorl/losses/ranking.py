"""Max-margin ranking: a clip's own text is nearer than any other, by a margin, and the other way round.

As LaViLa fine-tunes for multi-instance retrieval (facebookresearch/LaViLa, models/loss.py), after Frozen in Time; with
margins by relevancy, Lin et al., EgoVLP, 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.losses.infonce import one_text_each, similarities
from videorl.registry import LOSSES, NonNegative, UserError


@LOSSES.register("max_margin")
class MaxMargin(nn.Module):
    """Mean over i != j, of both directions, of relu(m_i - x_ii + x_ij) and relu(m_i - x_ii + x_ji), x cosines.

    Keys:
        margin: m, of similarities in -1..1; published: 0.2, adaptive 0.4
        adaptive: the margin of sample i is m times its `relevancy`
        fix_norm: leave i = j, whose term is always m, out of the mean
    """

    coupled = True

    def __init__(self, spec, *, margin: NonNegative = 0.2, adaptive: bool = False, fix_norm: bool = True):
        super().__init__()
        self.margin, self.adaptive, self.fix_norm = margin, adaptive, fix_norm

    def forward(self, video_embed: Tensor, text_embed: Tensor, relevancy: Tensor | None = None) -> Tensor:
        """video_embed [B, D], text_embed [B, D] or [B, 1, D], of any length (they are normalised here), relevancy [B]
        -> scalar."""
        texts = one_text_each(text_embed, "max_margin")
        if len(texts) < 2:
            raise UserError("max_margin compares samples: expected two or more in a step, found one")
        if self.adaptive and relevancy is None:
            raise UserError("max_margin ADAPTIVE: the data set gives no `relevancy` of its texts; set it to False")
        cosines = similarities(texts, video_embed)
        margins = self.margin * relevancy[:, None] if self.adaptive else self.margin  # [B, 1]
        own = cosines.diagonal()[:, None]
        terms = torch.stack([F.relu(margins - own + others) for others in (cosines, cosines.T)])  # [2, B, B]
        if not self.fix_norm:
            return terms.mean()
        apart = ~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
        return terms[:, apart].mean()
