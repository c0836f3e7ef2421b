"""Dual encoder of video and text: LaViLa's, EgoVLP's and AVION's.

Zhao et al., Learning Video Representations from Large Language Models, CVPR 2023 (facebookresearch/LaViLa); Zhao and
Kraehenbuehl, Training a Large Video Model on a Single Machine in a Day, 2023 (zhaoyue-zephyrus/AVION); Lin et al.,
Egocentric Video-Language Pretraining, NeurIPS 2022 (showlab/EgoVLP).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.models.text import Clip, DistilBert
from videorl.models.timesformer import Tower, resize_inside
from videorl.registry import MODELS, Count, Positive, UserError
from videorl.spec import Spec


@MODELS.register("DualEncoder", node="DUAL", video="TIMESFORMER")
class DualEncoder(nn.Module):
    """A TimeSformer with the keys of node TIMESFORMER, a text transformer, and a map of each to the joint space.

    Keys:
        video: the keys of node TIMESFORMER
        text: transformer of the texts: clip | distilbert
        embed_dim: width of the joint space
        norm_embed: embeddings have length 1; losses that want that do it themselves
        projection: matrix: linear maps without bias (LaViLa) | relu: with bias, and of texts after a ReLU (EgoVLP)
        text_width: width of the text tokens (distilbert: 768)
        text_heads: attention heads of each block (distilbert: 12)
        text_layers: number of blocks (distilbert: 6)
        text_mlp_ratio: hidden width of the MLPs, as a multiple of TEXT_WIDTH
        text_vocabulary: number of different tokens (distilbert: 30522)
        text_activation: of clip's MLPs; quick_gelu: OpenAI's CLIP and LaViLa, gelu: AVION
        text_weights: first weights of distilbert: folder of transformers' files, or hub:NAME; empty: random
    """

    def __init__(
        self,
        spec: Spec,
        *,
        video: dict,
        text: Literal["clip", "distilbert"] = "clip",
        embed_dim: Count = 256,
        norm_embed: bool = False,
        projection: Literal["matrix", "relu"] = "matrix",
        text_width: Count = 512,
        text_heads: Count = 8,
        text_layers: Count = 12,
        text_mlp_ratio: Positive = 4.0,
        text_vocabulary: Count = 49408,
        text_activation: Literal["gelu", "quick_gelu"] = "quick_gelu",
        text_weights: str = "",
    ):
        super().__init__()
        check_tokenizer(text, spec.text.tokenizer)
        self.video = Tower(spec, **{name.lower(): value for name, value in video.items()})
        self.clip, self.norm_embed = self.video.clip, norm_embed
        shape = {"width": text_width, "heads": text_heads, "layers": text_layers}
        shape |= {"mlp_ratio": text_mlp_ratio, "vocabulary": text_vocabulary}
        if text == "clip":
            self.text = Clip(spec, activation=text_activation, **shape)
        else:
            self.text = DistilBert(spec, text_weights, **shape)
        if projection == "matrix":
            self.video_projection = matrix(self.video.dim, embed_dim)
            self.text_projection = matrix(text_width, embed_dim)
        else:
            self.video_projection = nn.Linear(self.video.dim, embed_dim)
            self.text_projection = nn.Linear(text_width, embed_dim)

    def forward(self, video: Tensor, text: Tensor | None = None) -> dict[str, Tensor]:
        """video `[B, C, T, H, W]`; text `[B, K, L]` or `[B, L]` (K = 1), numbers of tokens, 0 for padding.

        Returns `video_embed` `[B, D]`, `features` `[B, width]` and, with text, `text_embed` `[B, K, D]`.
        """
        features = self.video.lead(video)
        found = {"video_embed": self._embedded(features, self.video_projection), "features": features}
        return found if text is None else {**found, "text_embed": self.embed_text(text)}

    def feature_map(self, video: Tensor) -> dict[str, Tensor]:
        """The video tower's normalised tokens: `cls` `[B, width]` and `map` `[B, T, H, W, width]`."""
        return self.video.feature_map(video)

    def embed_text(self, text: Tensor) -> Tensor:
        """`[B, K, L]` or `[B, L]` (K = 1) to `[B, K, D]`."""
        text = text if text.ndim == 3 else text[:, None]
        if text.shape[2] > self.text.length:
            raise UserError(
                f"texts of {text.shape[2]} tokens, the text tower has places for {self.text.length}: set MAX_WORDS of"
                " the data set or of TEXT to as many"
            )
        tokens = text.flatten(0, 1)  # [B*K, L]
        features = self.text(tokens[:, : longest(tokens)])
        if isinstance(self.text_projection, nn.Linear):
            features = F.relu(features)
        return self._embedded(features, self.text_projection).unflatten(0, text.shape[:2])

    def _embedded(self, features: Tensor, projection: nn.Module | Tensor) -> Tensor:
        embed = projection(features) if isinstance(projection, nn.Linear) else features @ projection
        return F.normalize(embed, dim=1) if self.norm_embed else embed

    def resize_positions(self, weights: dict[str, Tensor], clip=None) -> tuple[dict[str, Tensor], list[str], list[str]]:
        """The weights with position tables of other clips resized, of longer texts cut, the names of these, and none
        made new. `clip` is not needed."""
        weights, names, new = resize_inside(self.video, "video.", weights)
        name = "text.model.positional_embedding"
        target, source = dict(self.named_parameters()).get(name), weights.get(name)
        if target is not None and source is not None and len(source) > len(target):
            weights[name] = source[: len(target)]
            names.append(name)
        return weights, names, new

    def no_weight_decay(self) -> set[str]:
        """Parts of the names of the parameters that weight decay leaves alone: with TIMESFORMER.ZERO_DECAY_POS_CLS
        positions and class token."""
        own = self.video.no_weight_decay()
        return own | {"positional_embedding", "position_embeddings"} if own else own


def check_tokenizer(tower: str, tokenizer: str) -> None:
    """Raises `UserError` where the numbers of texts mean nothing to the tower."""
    wanted = "clip" if tower == "clip" else "a folder with BERT's vocab.txt or hub:distilbert-base-uncased"
    if (tower == "clip") != (tokenizer == "clip") or tokenizer == "words":
        raise UserError(f"DUAL.TEXT {tower} needs TEXT.TOKENIZER {wanted}, found {tokenizer}; set one of the two")


def longest(tokens: Tensor) -> int:
    """Numbers of the longest of the texts `[B, L]`: the padding behind, which all have, changes none of them."""
    if tokens.is_meta:
        return tokens.shape[1]
    used = (tokens != 0).any(0).nonzero()
    return int(used.max()) + 1 if len(used) else 1


def matrix(rows: int, columns: int) -> nn.Parameter:
    """`[rows, columns]`, which features are multiplied by, with CLIP's first values."""
    return nn.Parameter(torch.randn(rows, columns) * rows**-0.5)
