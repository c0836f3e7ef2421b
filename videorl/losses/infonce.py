"""InfoNCE between video and text in both directions, with a learned temperature (Radford et al., CLIP, 2021).

With a temperature of its own for machine-written texts: Zhao et al., LaViLa, CVPR 2023 (facebookresearch/LaViLa).
"""

import logging
import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.registry import LOSSES, NonNegative, Positive, Range, UserError

log = logging.getLogger("videorl")


@LOSSES.register("infonce")
class InfoNCE(nn.Module):
    """Cross-entropy of each video among all texts and of each text among all videos, averaged (or of one of them).

    1 / temperature is kept in 1 .. max_scale: the parameter itself is clamped before each use, as in CLIP, so that it
    can always come back. With `pseudo_temperature` video i and text j are multiplied by sqrt(s_i s_j), where s is the
    second scale for samples that `pseudo` marks, else the first.

    Keys:
        temperature: first value of the temperature; the similarities are divided by it
        learn_temperature: whether it is trained
        pseudo_temperature: first value of that of samples whose text a machine wrote (`pseudo`); 0: the same for all
        learn_pseudo_temperature: whether it is trained
        max_scale: upper limit of 1 / temperature
        several_positives: a clip may have K > 1 texts, which all fit: the softmax over all texts is summed over these
        direction: both | v2t: each video among all texts | t2v: each text among all videos
        cosine: similarities are cosines; false: dot products, as in VideoCLIP, whose loss is twice `both` with
            TEMPERATURE 1.0 and LEARN_TEMPERATURE False
    """

    coupled = True

    def __init__(
        self,
        spec,
        *,
        temperature: Positive = 0.07,
        learn_temperature: bool = True,
        pseudo_temperature: NonNegative = 0.0,
        learn_pseudo_temperature: bool = True,
        max_scale: Annotated[float, Range("> 1")] = 100.0,
        several_positives: bool = False,
        direction: Literal["both", "v2t", "t2v"] = "both",
        cosine: bool = True,
    ):
        super().__init__()
        self.largest, self.several_positives = math.log(max_scale), several_positives
        self.ways = {"both": ("v2t", "t2v")}.get(direction, (direction,))
        self.similarities = similarities if cosine else dot_products
        self.log_scale = self._scale("TEMPERATURE", temperature, learn_temperature)
        self.log_pseudo_scale = None
        if pseudo_temperature:
            self.log_pseudo_scale = self._scale("PSEUDO_TEMPERATURE", pseudo_temperature, learn_pseudo_temperature)

    def _scale(self, key: str, temperature: float, learned: bool) -> nn.Parameter:
        log_scale = -math.log(temperature)
        inside = min(max(log_scale, 0.0), self.largest)
        if inside != log_scale:
            log.warning("infonce %s %g: begins at %g, for 1 / MAX_SCALE", key, temperature, math.exp(-inside))
        return nn.Parameter(torch.tensor(inside), requires_grad=learned)

    def forward(self, video_embed: Tensor, text_embed: Tensor, pseudo: Tensor | None = None) -> Tensor:
        """video_embed [B, D], text_embed [B, D] or [B, K, D] (for cosines they are normalised here), pseudo [B] bool
        -> scalar."""
        text_embed = text_embed if text_embed.ndim == 3 else text_embed[:, None]
        samples, texts = text_embed.shape[:2]
        if texts > 1 and not self.several_positives:
            raise UserError(
                f"infonce expects one text a clip, found {texts}: give one, or set SEVERAL_POSITIVES True if all of"
                " them fit the clip (milnce is for candidates of which some may not)"
            )
        logits = self.similarities(video_embed, text_embed.flatten(0, 1))
        logits = logits * self._scales(samples, texts, pseudo)
        ways = {"v2t": logits, "t2v": logits.T}
        return sum(_contrast_own(ways[way], samples) for way in self.ways) / len(self.ways)

    def _scales(self, samples: int, texts: int, pseudo: Tensor | None) -> Tensor:
        """[B, B * K], or a scalar where all samples have one temperature."""
        self._clamp()
        if self.log_pseudo_scale is None:
            return self.log_scale.exp()
        if pseudo is None:
            raise UserError(
                "infonce PSEUDO_TEMPERATURE: the data set gives no `pseudo`, which texts a machine wrote; set it to 0"
            )
        half = torch.where(pseudo.bool(), self.log_pseudo_scale, self.log_scale) / 2  # [B]
        return (half[:, None] + half.repeat_interleave(texts)[None]).exp()

    @torch.no_grad()
    def _clamp(self) -> None:
        for parameter in self.parameters():
            parameter.clamp_(0.0, self.largest)

    @torch.no_grad()
    def monitor(self, video_embed: Tensor, text_embed: Tensor) -> dict[str, tuple[Tensor, int]]:
        """Videos whose nearest text is their own, and all videos."""
        texts = text_embed.shape[1] if text_embed.ndim == 3 else 1
        nearest = self.similarities(video_embed, text_embed.reshape(-1, text_embed.shape[-1])).argmax(1) // texts
        own = torch.arange(len(nearest), device=nearest.device)
        return {"top1": ((nearest == own).sum(), len(nearest))}


def one_text_each(text_embed: Tensor, loss: str) -> Tensor:
    """[B, D] of texts [B, D] or [B, 1, D]. Raises `UserError` where clips have several."""
    if text_embed.ndim == 3 and text_embed.shape[1] > 1:
        raise UserError(
            f"{loss} expects one text a clip, found {text_embed.shape[1]}: give one, or choose another loss"
        )
    return text_embed.flatten(1)


def similarities(videos: Tensor, texts: Tensor) -> Tensor:
    """Cosines [N, M] of videos [N, D] and texts [M, D]."""
    return F.normalize(videos, dim=1) @ F.normalize(texts, dim=1).T


def dot_products(videos: Tensor, texts: Tensor) -> Tensor:
    """[N, M] of videos [N, D] and texts [M, D]."""
    return videos @ texts.T


def _contrast_own(logits: Tensor, samples: int) -> Tensor:
    """`contrast` with the positives of the same sample, of which rows or columns have one or several."""
    own = torch.arange(samples, device=logits.device)
    if logits.shape == (samples, samples):
        return F.cross_entropy(logits, own)
    rows, columns = (own.repeat_interleave(size // samples) for size in logits.shape)
    return contrast(logits, rows[:, None] == columns)


def contrast(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over rows of -log sum of the softmax over the positives. logits [N, M], positives [N, M] bool -> scalar."""
    own = logits.masked_fill(~positives, -math.inf).logsumexp(1)
    return (logits.logsumexp(1) - own).mean()
