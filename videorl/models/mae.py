"""PySlowFast's masked autoencoder: a plain ViT with a class token on the visible patches, and a small decoder.

Feichtenhofer et al., Masked Autoencoders As Spatiotemporal Learners, NeurIPS 2022; reference code: facebookresearch/
SlowFast (MaskMViT with MASK.MAE_ON), whose names of weights these are.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.metrics.pixels import Targets, normalised, patches
from videorl.models.clips import check_clip
from videorl.models.mvit import EPS, Block, Encoder, Plan
from videorl.models.videomae import check_masking
from videorl.models.vit import embed_patches
from videorl.registry import MODELS, Count, Positive, UserError, Whole
from videorl.spec import Spec

HEAD_WIDTH = 64  # of the decoder's attention


class Decoder(nn.Module):
    """Blocks, a norm and a linear map to pixels. The lists of one are of the published names."""

    def __init__(self, blocks: list[Block], dim: int, size: int):
        super().__init__()
        self.transforms = nn.ModuleList([nn.Sequential(*blocks, nn.LayerNorm(dim, EPS))])
        self.projections = nn.ModuleList([nn.Linear(dim, size)])

    def forward(self, x: Tensor, predicted: int) -> Tensor:
        """`[B, N, D]` to what is predicted of the last tokens, `[B, predicted, P]`."""
        return self.projections[0](self.transforms[0](x)[:, -predicted:])


@MODELS.register("MaskMViT", node="MVIT")
class MaskMViT(Encoder):
    """The masked autoencoder for pre-training; `MViT` with the same keys fine-tunes its encoder.

    The encoder sees single tokens, which cannot be pooled: MVIT must describe a plain ViT. The decoder's positions are
    for one clip shape: from a checkpoint of another they start anew.

    Keys:
        decoder_embed_dim: width of the decoder's tokens; its attention heads are 64 wide
        decoder_depth: number of its blocks
    """

    def __init__(
        self,
        spec: Spec,
        *,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        decoder_embed_dim: Count = 512,
        decoder_depth: Whole = 4,
        **encoder,
    ):
        check_masking(spec, "MaskMViT", "MViT")
        super().__init__(spec, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, **encoder)
        check_plain(self, spec)
        clip, self.patch = spec.clip, tuple(spec.patch)
        self.clip = (clip.frames, clip.channels, clip.train_size, clip.train_size)
        self.register_buffer("mean", torch.tensor(clip.mean), persistent=False)
        self.register_buffer("std", torch.tensor(clip.std), persistent=False)
        self.decoder_embed = nn.Linear(self.norm.normalized_shape[0], decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        places = self.lead + math.prod(self.grid)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, places, decoder_embed_dim))
        plan = plain_plan(decoder_embed_dim, self.blocks[0].plan)
        block = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "drop_path": 0.0, "dropout": 0.0, "layer_scale": 0.0}
        block |= {"axes": "", "residual": False, "skip_raw": False, "eps": EPS}
        blocks = [Block(plan, self.lead, **block) for _ in range(decoder_depth)]
        self.pred_head = Decoder(blocks, decoder_embed_dim, Targets.of(spec).size)
        self._initialise()

    def forward(self, pixels: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """Clips `[B, T, C, H, W]` in 0..255 and token numbers `[B, V]`, `[B, M]` to the latter's pixels `[B, M, P]`."""
        check_clip(self, pixels, "TCHW")
        seen = normalised(patches(pixels, visible, self.patch), self.mean, self.std)
        encoded = self.decoder_embed(self.encode(seen, visible))  # [B, L + V, D]
        hidden = self.mask_token.type_as(encoded).expand(*masked.shape, -1)
        places = torch.cat([self._places(visible), self.lead + masked], dim=1)
        x = torch.cat([encoded, hidden], dim=1) + self.decoder_pos_embed[0][places].type_as(encoded)
        return {"predicted": self.pred_head(x, masked.shape[1])}

    def encode(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Normalised patches `[B, V, P]` and the numbers of their tokens `[B, V]` to `[B, L + V, D]`."""
        x = embed_patches(patches, self.patch_embed.proj)
        if self.lead:
            x = torch.cat([self.cls_token.type_as(x).expand(len(x), -1, -1), x], dim=1)
        if (positions := self.positions()) is not None:
            x = x + positions[0][self._places(visible)].type_as(x)
        return self.norm(self.through_blocks(self.dropout(x)))

    def _places(self, tokens: Tensor) -> Tensor:
        """Rows of a table of positions, `[B, L + V]`: the class token's and those of tokens `[B, V]`."""
        return F.pad(self.lead + tokens, (self.lead, 0))


def check_plain(model: Encoder, spec: Spec) -> None:
    """Raises `UserError` where blocks pool or widen, or where patches are not those of MODEL.PATCH_SIZE."""
    found = model.patch_embed.proj
    kernel, stride, padding = found.kernel_size, found.stride, found.padding
    if not kernel == stride == tuple(spec.patch) or any(padding):
        raise UserError(
            f"MaskMViT: MVIT.PATCH_KERNEL {kernel}, PATCH_STRIDE {stride}, PATCH_PADDING {padding}: expected the first"
            f" two to be MODEL.PATCH_SIZE {tuple(spec.patch)}, and no padding"
        )
    for block in model.blocks:
        plan = block.plan
        if plan.kernel_q or plan.kernel_kv or plan.dim != plan.dim_out or block.attn.axes:
            raise UserError(
                "MaskMViT drops tokens, so its blocks cannot pool: expected a plain ViT; leave MVIT.DIM_MUL, HEAD_MUL,"
                " POOL_Q_STRIDE, POOL_KV_STRIDE_ADAPTIVE, REL_POS_SPATIAL and REL_POS_TEMPORAL as they are by default"
            )


def plain_plan(dim: int, like: Plan) -> Plan:
    """The plan of a decoder's block. Raises `UserError` where heads do not fill the width."""
    if dim % HEAD_WIDTH:
        raise UserError(f"MVIT.DECODER_EMBED_DIM {dim}: expected a multiple of {HEAD_WIDTH}, the width of a head")
    return replace(like, dim=dim, dim_attn=dim, dim_out=dim, heads=dim // HEAD_WIDTH)
