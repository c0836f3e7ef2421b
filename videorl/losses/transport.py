"""Norton: texts and clips that are told apart, and sequences of them, with optimal transport for what fits in part.

Lin et al., Multi-granularity Correspondence Learning from Long-term Noisy Videos, ICLR 2024
(XLearning-SCU/2024-ICLR-Norton, losses/nce.py).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.losses.infonce import one_text_each, similarities
from videorl.losses.soft_maxima import soft_maxima
from videorl.metrics.transport import sinkhorn
from videorl.registry import LOSSES, Count, NonNegative, Positive, Share, UserError, Whole

LARGEST = math.log(100.0)  # of the logarithm of 1 / temperature
TOKENS = ("video_tokens", "video_token_mask", "text_tokens", "text_token_mask")


@LOSSES.register("norton")
class Norton(nn.Module):
    """Contrast of clips with their texts, plus `sequence_weight` * contrast of sequences of clips with those of texts.

    The first is the sum of two cross-entropies, of texts by clip and of clips by text, of dot products with targets
    soft_targets * Q + (1 - soft_targets) * I, where Q is the transport plan of the dot products. The second asks which
    sequence of texts goes with a sequence of clips: the score of two is the mean similarity under their transport plan,
    of which a bucket takes clips and texts that fit nothing. A similarity is the mean of a coarse one, the cosine of
    the embeddings, and a fine one, soft maxima over words and frames, each scaled to 0..1 over all clips. Plans have no
    gradient. Clips of a video must stand together in a step, in order: `sequence_length` of them are a sequence.

    Keys:
        soft_targets: share of the plan in the targets of the first loss, published as beta; 0: none
        iterations: of Sinkhorn's algorithm
        sequence_weight: of the second loss, published as sequence_contrast_weight; 0: none, and no hidden states needed
        sequence_length: clips of a sequence, published as threshold
        bucket: share of the pairs of a clip with its own text that score below the bucket, published as prompt_ratio
            (the lowest ones, whatever its comment says); 0: no bucket
        entropy: weight of the entropy in the plan of two sequences, published as scale
        alpha: softness of the maxima over words and frames, published as alpha_lse
        coarse_weight: of the coarse similarity beside 1 of the fine, published as fusion_weight
        temperature: scores of sequences are divided by it
        learn_temperature: whether it is trained; as published it is not, though written as if it were
        clips_together: clips that are told apart from each other; 0: all of a step. As published those of a GPU, 1024:
            the loss is then the mean over so many clips at a time, in order
    """

    coupled = True

    def __init__(
        self,
        spec,
        *,
        soft_targets: Share = 0.3,
        iterations: Count = 50,
        sequence_weight: NonNegative = 0.1,
        sequence_length: Count = 8,
        bucket: Share = 0.3,
        entropy: Positive = 0.1,
        alpha: Positive = 1.0,
        coarse_weight: NonNegative = 0.5,
        temperature: Positive = 0.07,
        learn_temperature: bool = False,
        clips_together: Whole = 0,
    ):
        super().__init__()
        self.soft_targets, self.iterations, self.clips_together = soft_targets, iterations, clips_together
        self.sequence_weight, self.sequence_length = sequence_weight, sequence_length
        self.bucket, self.entropy, self.alpha, self.coarse_weight = bucket, entropy, alpha, coarse_weight
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn_temperature)

    def forward(
        self,
        video_embed: Tensor,
        text_embed: Tensor,
        video_tokens: Tensor | None = None,
        video_token_mask: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_token_mask: Tensor | None = None,
    ) -> Tensor:
        """video_embed and text_embed [B, D] (or [B, 1, D]), video_tokens [B, V, D] and text_tokens [B, T, D], masks
        [B, V] and [B, T], 1 where a token counts -> scalar."""
        given = (video_embed, one_text_each(text_embed, "norton"))
        if self.sequence_weight:
            tokens = (video_tokens, video_token_mask, text_tokens, text_token_mask)
            if missing := [name for name, value in zip(TOKENS, tokens) if value is None]:
                raise UserError(
                    f"norton needs {', '.join(missing)}, hidden states of words and frames: choose a model that gives"
                    " them (VideoCLIP), or set SEQUENCE_WEIGHT 0"
                )
            given = (*given, *tokens)
        size = self.clips_together or len(video_embed)
        if len(video_embed) % size:
            raise UserError(
                f"norton CLIPS_TOGETHER {size}: a step has {len(video_embed)} clips, expected a multiple of it"
            )
        parts = zip(*(values.split(size) for values in given))
        return torch.stack([self._contrast(*part) for part in parts]).mean()

    def _contrast(self, video: Tensor, text: Tensor, *tokens: Tensor) -> Tensor:
        logits = video @ text.T
        targets = torch.eye(len(video), device=video.device)
        if self.soft_targets:
            plan = sinkhorn(logits.detach(), self.iterations)
            targets = self.soft_targets * plan + (1 - self.soft_targets) * targets
        loss = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets.T)
        return loss + self.sequence_weight * self.sequences(video, text, *tokens) if self.sequence_weight else loss

    def sequences(self, video: Tensor, text: Tensor, *tokens: Tensor) -> Tensor:
        """The second loss, without its weight."""
        size = self.sequence_length
        if len(video) % size:
            raise UserError(
                f"norton SEQUENCE_LENGTH {size}: {len(video)} clips are compared, expected a multiple of it; the clips"
                " that a data set gives of a video must be one too"
            )
        similarity = self.similarity(video, text, *tokens)
        # [X, Y, n, n]: the texts of sequence x and the clips of sequence y.
        pairs = similarity.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2)
        plans = sinkhorn(pairs.detach() / self.entropy, self.iterations, self.bucket_score(similarity))
        plans = plans * (size / plans.sum((2, 3), keepdim=True))
        with torch.no_grad():
            self.log_scale.clamp_(0.0, LARGEST)
        logits = self.log_scale.exp() * (plans * pairs).sum((2, 3))
        own = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)

    def similarity(self, video, text, video_tokens, video_token_mask, text_tokens, text_token_mask) -> Tensor:
        """[B texts, B clips], about 0..1."""
        by_words, by_frames = soft_maxima(
            text_tokens, text_token_mask > 0, video_tokens, video_token_mask > 0, self.alpha
        )
        fine = (_from_0_to_1(by_words) + _from_0_to_1(by_frames)) / 2
        coarse = _from_0_to_1(similarities(text, video))
        return (self.coarse_weight * coarse + fine) / (self.coarse_weight + 1)

    def bucket_score(self, similarity: Tensor) -> Tensor | None:
        """Score of the bucket in the plans, or None for none."""
        if not self.bucket:
            return None
        own = similarity.detach().diagonal()
        return own.kthvalue(max(1, int(self.bucket * len(own)))).values / self.entropy


def _from_0_to_1(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min())
