"""VideoCLIP's two BERTs, of video and of text, on stored features.

Xu et al., VideoCLIP, EMNLP 2021 (facebookresearch/fairseq, examples/MMPT, MMFusionSeparate), which Norton trains on.
Names of weights are the published ones; blocks are those of transformers, with its fused attention.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from videorl.models.text import recompute
from videorl.registry import MODELS, Count, ShareBelow1, UserError, Whole
from videorl.spec import Spec


class VideoEncoder(nn.Module):
    """Features of a clip [B, L, F], mask [B, L] -> hidden states [B, L + 2, D] of [CLS], its frames and [SEP].

    [SEP] stands at position L + 1 however many frames are there, so its place depends on what clips are filled up to.
    """

    def __init__(self, bert: nn.Module, features: int, marks: tuple[int, int]):
        super().__init__()
        width = bert.config.hidden_size
        self.videomlp = nn.ModuleDict(
            {
                "linear1": nn.Linear(features, width),
                "LayerNorm": nn.LayerNorm(width),
                "linear2": nn.Linear(width, width),
            }
        )
        self.bert = bert
        self.register_buffer("marks", torch.tensor(marks), persistent=False)

    def forward(self, features: Tensor, mask: Tensor, attend_cls: bool) -> Tensor:
        mlp = self.videomlp
        frames = mlp["linear2"](mlp["LayerNorm"](nn.functional.gelu(mlp["linear1"](features))))
        cls, sep = self.bert.embeddings.word_embeddings(self.marks)[:, None, None].expand(-1, len(frames), 1, -1)
        attended = nn.functional.pad(mask.bool(), (1, 1), value=True)
        attended[:, 0] = attend_cls
        embedded = torch.cat([cls.to(frames.dtype), frames, sep.to(frames.dtype)], 1)
        return self.bert(inputs_embeds=embedded, attention_mask=attended).last_hidden_state


@MODELS.register("VideoCLIP", node="VIDEOCLIP")
class VideoCLIP(nn.Module):
    """Stored features of clips and tokens of texts, [CLS] text [SEP], in one space.

    `video_embed` and `text_embed` are means over the hidden states of what is there, with [SEP] and without [CLS]; they
    are not normalised.

    Keys:
        features: numbers of a stored feature
        video_layers: blocks of the video encoder
        text_layers: blocks of the text encoder
        width: of the blocks
        heads: of attention
        hidden: width of the MLPs in the blocks
        vocabulary: tokens there are
        positions: length of the tables of positions
        cls_token: number of the token [CLS], which the video encoder puts in front of a clip
        sep_token: number of the token [SEP], which it puts behind
        attend_cls: whether the frames of a clip attend to [CLS]; published fine-tunings on COIN and full videos do not
        dropout: of hidden states and attention
        train: all | layer_norms: their gains and biases alone, as Norton does
    """

    def __init__(
        self,
        spec: Spec,
        *,
        features: Count = 512,
        video_layers: Count = 6,
        text_layers: Count = 12,
        width: Count = 768,
        heads: Count = 12,
        hidden: Count = 3072,
        vocabulary: Count = 30522,
        positions: Count = 512,
        cls_token: Whole = 101,
        sep_token: Whole = 102,
        attend_cls: bool = True,
        dropout: ShareBelow1 = 0.1,
        train: Literal["all", "layer_norms"] = "all",
    ):
        super().__init__()
        shape = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": hidden,
            "max_position_embeddings": positions,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
        if max(cls_token, sep_token) >= vocabulary:
            raise UserError(f"VIDEOCLIP.CLS_TOKEN and SEP_TOKEN: expected tokens below VOCABULARY {vocabulary}")
        self.attend_cls, self.features = attend_cls, features
        self.video_encoder = VideoEncoder(_bert(spec, video_layers, shape), features, (cls_token, sep_token))
        self.text_encoder = _bert(spec, text_layers, shape)
        for name, parameter in self.named_parameters():
            if "pooler" in name or (train == "layer_norms" and "LayerNorm" not in name):
                parameter.requires_grad = False

    def forward(
        self,
        video_features: Tensor | None = None,
        video_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """video_features [B, L, F], text [B, T] int64 (or K candidates each, [B, K, T]), and their masks [B, L] and
        [B, T]; one of them may be left out."""
        found = self.embed_video(video_features, video_mask) if video_features is not None else {}
        return found | (self.embed_text(text, text_mask) if text is not None else {})

    def embed_video(self, features: Tensor, mask: Tensor, attend_cls: bool | None = None) -> dict[str, Tensor]:
        """`video_embed` [B, D], `video_tokens` [B, L + 2, D], `video_token_mask` [B, L + 2]."""
        if features.shape[2] != self.features:
            raise UserError(
                f"VIDEOCLIP.FEATURES {self.features}: the data set's have {features.shape[2]} numbers; set it to that,"
                " or name the features that the weights were trained on"
            )
        tokens = self.video_encoder(features, mask, self.attend_cls if attend_cls is None else attend_cls)
        mask = nn.functional.pad(mask.bool(), (1, 1), value=True)
        mask[:, 0] = False
        return {"video_embed": _mean(tokens, mask), "video_tokens": tokens, "video_token_mask": mask}

    def embed_text(self, text: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """`text_embed` [B, D], `text_tokens` [B, T, D], `text_token_mask` [B, T]; of candidates [B, K, D] alone."""
        if text.ndim == 3:
            found = self.embed_text(text.flatten(0, 1), mask.flatten(0, 1))
            return {"text_embed": found["text_embed"].unflatten(0, text.shape[:2])}
        tokens = self.text_encoder(text, attention_mask=mask.bool()).last_hidden_state
        mask = mask.bool().clone()
        mask[:, 0] = False
        return {"text_embed": _mean(tokens, mask), "text_tokens": tokens, "text_token_mask": mask}


@MODELS.register("VideoCLIPFrames", node="VIDEOCLIP")
class VideoCLIPFrames(VideoCLIP):
    """A class for each frame of a clip: `logits` [B, L, C], for COIN C = 779, where class 0 is that nothing is done.

    The text encoder stays as it is and is not used.

    Keys:
        classes: classes of a frame
    """

    def __init__(self, spec: Spec, *, classes: Count = 779, **more):
        super().__init__(spec, **more)
        self.text_encoder.requires_grad_(False)
        self.head = nn.Linear(self.text_encoder.config.hidden_size, classes)

    def forward(self, video_features: Tensor, video_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.embed_video(video_features, video_mask)["video_tokens"][:, 1:-1])}


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """[B, D] of tokens [B, N, D], over those that the mask [B, N] has."""
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _bert(spec: Spec, layers: int, shape: dict) -> nn.Module:
    try:
        from transformers import BertConfig, BertModel
    except ImportError:
        raise UserError("VideoCLIP needs transformers, which is not here; pip install 'videorl[text]'") from None
    if shape["hidden_size"] % shape["num_attention_heads"]:
        raise UserError(
            f"VIDEOCLIP.WIDTH {shape['hidden_size']}: expected a multiple of HEADS {shape['num_attention_heads']}"
        )
    bert = BertModel(BertConfig(num_hidden_layers=layers, attn_implementation="sdpa", **shape))
    if spec.act_checkpoint:
        recompute(bert)
    return bert
