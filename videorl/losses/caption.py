"""Cross-entropy of each token of a caption, given the clip and the tokens before it: the loss of narrators.

Zhao et al., Learning Video Representations from Large Language Models, CVPR 2023 (facebookresearch/LaViLa).
"""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from videorl.registry import LOSSES

IGNORED = -100


def perplexity(nats: float) -> float:
    """Of a mean of so many nats a token."""
    return math.exp(nats) if nats < 700 else math.inf


@LOSSES.register("caption")
class Caption(nn.Module):
    """Nats of the tokens of the texts, averaged; -1 in a text is padding.

    The log shows the `perplexity` of a real token, whatever the mean is over.

    Keys:
        mean: tokens: of all real tokens but the start | positions: as LaViLa, over all places of TEXT.MAX_WORDS but the
            first, padding too, where token 0, LaViLa's padding, counts nothing: so GPT-2's token 0, "!", is not trained
    """

    coupled = False
    shown = {"perplexity": perplexity}

    def __init__(self, spec, *, mean: Literal["tokens", "positions"] = "tokens"):
        super().__init__()
        self.over_positions = mean == "positions"

    def count(self, batch) -> int:
        """Terms of the mean."""
        following = _rows(batch["text"])[:, 1:]
        return following.numel() if self.over_positions else int((following >= 0).sum())

    def forward(self, token_logits: Tensor, text: Tensor) -> Tensor:
        """token_logits [B, M, V] of the tokens 1 to M of text [B, L] or [B, 1, L] int64 -> scalar, the sum."""
        return _nats(token_logits, text, least=1 if self.over_positions else 0)

    def monitor(self, token_logits: Tensor, text: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {"perplexity": (_nats(token_logits, text, least=0), (_rows(text)[:, 1:] >= 0).sum())}


def _nats(token_logits: Tensor, text: Tensor, least: int) -> Tensor:
    """Summed over tokens of number `least` and more."""
    following = _rows(text)[:, 1 : token_logits.shape[1] + 1]
    targets = following.where(following >= least, IGNORED)
    return F.cross_entropy(token_logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def _rows(text: Tensor) -> Tensor:
    return text.flatten(1) if text.ndim == 3 and text.shape[1] == 1 else text
