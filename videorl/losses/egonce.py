"""EgoNCE: texts that share a verb and a noun with a clip's own are positives too.

Lin et al., Egocentric Video-Language Pretraining, NeurIPS 2022 (showlab/EgoVLP, model/loss.py).
"""

import torch
from torch import Tensor, nn

from videorl.losses.infonce import contrast, one_text_each, similarities
from videorl.registry import LOSSES, Positive, UserError


@LOSSES.register("egonce")
class EgoNCE(nn.Module):
    """-log of the softmax summed over the positives, of videos among texts plus of texts among videos (not halved).

    Keys:
        temperature: the similarities are divided by it
        verbs: positives must share a verb
        nouns: positives must share a noun
    """

    coupled = True

    def __init__(self, spec, *, temperature: Positive = 0.05, verbs: bool = True, nouns: bool = True):
        super().__init__()
        if not (verbs or nouns):
            raise UserError("egonce: expected VERBS, NOUNS or both, found neither, which is infonce: choose that")
        self.temperature, self.kinds = temperature, (verbs, nouns)

    def forward(self, video_embed: Tensor, text_embed: Tensor, verbs: Tensor, nouns: Tensor) -> Tensor:
        """video_embed [B, D], text_embed [B, D] or [B, 1, D], of any length (they are normalised here), verbs [B, V]
        and nouns [B, N], 1 where the text of a sample has the word -> scalar."""
        texts = one_text_each(text_embed, "egonce")
        positives = torch.eye(len(texts), dtype=torch.bool, device=texts.device) | self.shared(verbs, nouns)
        return ego_nce(similarities(video_embed, texts) / self.temperature, positives)

    def shared(self, verbs: Tensor, nouns: Tensor) -> Tensor:
        """[B, B] bool: the texts of two samples share a word of each kind that counts."""
        kinds = [words.float() for words, counts in zip((verbs, nouns), self.kinds, strict=True) if counts]
        return torch.stack([words @ words.T > 0 for words in kinds]).all(0)


def ego_nce(logits: Tensor, positives: Tensor) -> Tensor:
    """logits [B, B], rows videos, and positives [B, B] bool -> scalar."""
    return contrast(logits, positives) + contrast(logits.T, positives.T)
