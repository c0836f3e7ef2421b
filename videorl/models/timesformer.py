"""TimeSformer and its kin: a ViT whose attention over space and time is divided, joint or over space alone.

Bertasius et al., Is Space-Time Attention All You Need for Video Understanding?, ICML 2021 (facebookresearch/
TimeSformer, whose names of weights these are); Bain et al., Frozen in Time, ICCV 2021, in the form of LaViLa (Zhao et
al., CVPR 2023; facebookresearch/LaViLa); the joint one with a norm in front is AVION's (zhaoyue-zephyrus/AVION).

Tokens are `[B, 1 + T*N, D]`: one class token for the clip, then N patches of each frame in order of row and column.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videorl.models.clips import check_clip
from videorl.models.heads import Mlp, class_head, hidden_width
from videorl.models.mvit import DropPath
from videorl.registry import MODELS, Count, NonNegative, Positive, Share, UserError
from videorl.spec import Spec

TEMPORAL = ("time_embed", "temporal_")  # in the names of what an image model does not have


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), what OpenAI's CLIP was trained with."""
    return F.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of `[B, N, heads, C]` to `[B, M, heads, C]`, where `heads` may be any groups that stay apart."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


class Attention(nn.Module):
    """Projections to queries, keys and values and back; who attends to whom is the caller's."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor, asking: Tensor | None = None) -> list[Tensor]:
        """Queries of `asking` `[B, M, D]`, by default `x`, keys and values of `x` `[B, N, D]`: `[B, ., heads, C]`."""
        # Three products: each is dense in memory, so that places and heads can be one axis.
        parts = zip((x if asking is None else asking, x, x), self.qkv.weight.chunk(3), self.qkv.bias.chunk(3))
        return [F.linear(*part).unflatten(-1, (self.heads, -1)) for part in parts]

    def forward(self, x: Tensor, asking: Tensor | None = None) -> Tensor:
        """Tokens `asking`, by default all, attend to all tokens `x`."""
        return self.proj(attend(*self.split(x, asking)).flatten(2))


class Block(nn.Module):
    """Attention of all tokens to all, and an MLP: joint attention of a clip, or that of single frames.

    With `alone` the class token alone comes out, `[B, 1, D]`: all that is read of the last block, mostly.
    """

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float, activation: str, drop_path: float, **_):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, 1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, 1e-6)
        self.mlp = Mlp(dim, hidden_width(dim, mlp_ratio), dim, activation=ACTIVATIONS[activation])
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, frames: int, alone: bool = False) -> Tensor:
        gained = self._attended(x, alone)
        return self.transformed((x[:, :1] if alone else x) + gained)

    def _attended(self, x: Tensor, alone: bool) -> Tensor:
        x = self.norm1(x)
        return self.drop_path(self.attn(x, x[:, :1] if alone else x))

    def transformed(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DividedBlock(Block):
    """Time, then space: patches attend over time to their own place; each frame, with a copy of the class token, to
    itself. What the copies gain is averaged."""

    def __init__(self, dim: int, heads: int, **settings):
        super().__init__(dim, heads, **settings)
        self.temporal_norm1 = nn.LayerNorm(dim, 1e-6)
        self.temporal_attn = Attention(dim, heads)
        self.temporal_fc = nn.Linear(dim, dim)

    def forward(self, x: Tensor, frames: int, alone: bool = False) -> Tensor:
        lead, patches = x[:, :1], x[:, 1:]
        patches = patches + self._over_time(self.temporal_norm1(patches), frames)
        copies = lead.expand(-1, frames, -1).flatten(0, 1)[:, None]  # [B*T, 1, D]
        each = torch.cat([copies, patches.unflatten(1, (frames, -1)).flatten(0, 1)], dim=1)  # [B*T, 1 + N, D]
        gained = self._attended(each, alone).unflatten(0, (-1, frames))
        lead = lead + gained[:, :, 0].mean(1, keepdim=True)
        if alone:
            return self.transformed(lead)
        return self.transformed(torch.cat([lead, patches + gained[:, :, 1:].flatten(1, 2)], dim=1))

    def _over_time(self, x: Tensor, frames: int) -> Tensor:
        """`[B, T*N, D]`, of which each place attends to itself in all frames."""
        places = x.shape[1] // frames
        query, key, value = (  # [B, T, N * heads, C]
            part.unflatten(1, (frames, -1)).flatten(2, 3) for part in self.temporal_attn.split(x)
        )
        x = attend(query, key, value).unflatten(2, (places, -1)).flatten(3)  # [B, T, N, D]
        # Two linear maps in a row are one, which is a product of two small matrices.
        proj, last = self.temporal_attn.proj, self.temporal_fc
        x = F.linear(x, last.weight @ proj.weight, last.weight @ proj.bias)
        return (self.drop_path(x, (len(x), 1, places, 1)) + last.bias).flatten(1, 2)


class FrozenInTimeBlock(Block):
    """Time, then space, with one class token that attends to all tokens in both; patches attend to it and to their own
    place over time, then to it and to their own frame. The second one's gain is added to x, not to x + the first's."""

    def __init__(self, dim: int, heads: int, *, temporal_gate: bool, **settings):
        super().__init__(dim, heads, **settings)
        self.temporal_norm1 = nn.LayerNorm(dim, 1e-6)
        self.temporal_attn = Attention(dim, heads)
        self.temporal_gate = nn.Parameter(torch.zeros(())) if temporal_gate else None

    def forward(self, x: Tensor, frames: int, alone: bool = False) -> Tensor:
        timed = with_class(self.temporal_attn, self.temporal_norm1(x), frames, over_time=True)
        if self.temporal_gate is not None:
            timed = timed * self.temporal_gate.tanh()
        if alone:
            return self.transformed(x[:, :1] + self._attended(x + timed, alone))
        spaced = with_class(self.attn, self.norm1(x + timed), frames, over_time=False)
        return self.transformed(x + self.drop_path(spaced))


def with_class(attention: Attention, x: Tensor, frames: int, *, over_time: bool) -> Tensor:
    """Attention of the class token to all tokens `[B, 1 + T*N, D]`, of patches to it and to their place or frame."""
    parts = attention.split(x)
    lead = attend(parts[0][:, :1], *parts[1:])
    query, key, value = (grouped(part, frames, over_time) for part in parts)
    patches = attend(query[:, 1:], key, value)
    axis, sizes = (2, (-1, attention.heads)) if over_time else (0, (-1, frames))
    patches = patches.unflatten(axis, sizes)  # [B, T, N, heads, C]
    return attention.proj(torch.cat([lead, patches.flatten(1, 2)], dim=1).flatten(2))


def grouped(x: Tensor, frames: int, over_time: bool) -> Tensor:
    """`[B, 1 + T*N, heads, C]` by place, `[B, 1 + T, N*heads, C]`, or by frame, `[B*T, 1 + N, heads, C]`, each with a
    copy of the class token in front."""
    lead, patches = x[:, :1, None], x[:, 1:].unflatten(1, (frames, -1))  # [B, 1, 1, heads, C], [B, T, N, heads, C]
    if over_time:
        return torch.cat([lead.expand(-1, -1, patches.shape[2], -1, -1), patches], dim=1).flatten(2, 3)
    return torch.cat([lead.expand(-1, frames, -1, -1, -1), patches], dim=2).flatten(0, 1)


BLOCKS = {
    "divided_space_time": DividedBlock,
    "joint_space_time": Block,
    "space_only": Block,
    "frozen_in_time": FrozenInTimeBlock,
}


class PatchEmbed(nn.Module):
    """One linear map of every patch of every frame, with the weight of the published convolution."""

    def __init__(self, channels: int, dim: int, patch: int, bias: bool):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, dim, patch, patch, bias=bias)

    def forward(self, video: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to `[B, T, N, D]`."""
        cells = video.unflatten(4, (-1, self.patch)).unflatten(3, (-1, self.patch))  # [B, C, T, h, P, w, P]
        patches = cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)  # [B, T, N, C*P*P]
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Tower(nn.Module):
    """The video transformer without a head. The clip shape of the spec is the one that it is built for.

    Keys:
        attention_type: divided_space_time, joint_space_time or space_only, as TimeSformer; frozen_in_time: LaViLa's,
            whose time attention begins with no effect
        patch_size: pixels, side of a patch
        embed_dim: width of the tokens
        depth: number of blocks
        num_heads: attention heads of each block
        mlp_ratio: hidden width of the MLPs, as a multiple of EMBED_DIM
        activation: of the MLPs; quick_gelu: OpenAI's CLIP, and LaViLa, which starts from it
        pre_norm_eps: epsilon of a norm before the first block; patches then have no bias (LaViLa and CLIP 1e-5, AVION
            1e-6); 0: no such norm
        temporal_gate: frozen_in_time scales what time attention gives by tanh of a learned number that begins with 0
        droppath_rate: drop path of the last block; it rises linearly from 0 in the first
        freeze: space: time attention and time positions alone are trained; time: all others; all: nothing is
        resize: position tables of checkpoints of another clip shape; nearest: neighbours, as TimeSformer; linear in
            time, as LaViLa and AVION, of which frozen_in_time takes the first rows for fewer frames, bicubic in space
        zero_decay_pos_cls: no weight decay for positions and class token
    """

    def __init__(
        self,
        spec: Spec,
        *,
        attention_type: Literal[
            "divided_space_time", "joint_space_time", "space_only", "frozen_in_time"
        ] = "divided_space_time",
        patch_size: Count = 16,
        embed_dim: Count = 768,
        depth: Count = 12,
        num_heads: Count = 12,
        mlp_ratio: Positive = 4.0,
        activation: Literal["gelu", "quick_gelu"] = "gelu",
        pre_norm_eps: NonNegative = 0.0,
        temporal_gate: bool = False,
        droppath_rate: Share = 0.0,
        freeze: Literal["nothing", "space", "time", "all"] = "nothing",
        resize: Literal["nearest", "linear"] = "nearest",
        zero_decay_pos_cls: bool = False,
    ):
        super().__init__()
        if temporal_gate and attention_type != "frozen_in_time":
            raise UserError(
                f"TIMESFORMER.TEMPORAL_GATE True gates the time attention of frozen_in_time, found ATTENTION_TYPE"
                f" {attention_type}; set one of the two"
            )
        clip, self.dim, self.resize, self.act_checkpoint = spec.clip, embed_dim, resize, spec.act_checkpoint
        self.attention_type, self.zero_decay_pos_cls = attention_type, zero_decay_pos_cls
        check_shape(clip.train_size, patch_size, embed_dim, num_heads)
        self.clip = (clip.channels, clip.frames, clip.train_size, clip.train_size)
        self.patch_embed = PatchEmbed(clip.channels, embed_dim, patch_size, bias=not pre_norm_eps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (clip.train_size // patch_size) ** 2, embed_dim))
        if attention_type != "space_only":
            self.time_embed = nn.Parameter(torch.zeros(1, clip.frames, embed_dim))
        self.ln_pre = nn.LayerNorm(embed_dim, pre_norm_eps) if pre_norm_eps else None
        settings = {"mlp_ratio": mlp_ratio, "activation": activation, "temporal_gate": temporal_gate}
        rates = [droppath_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            BLOCKS[attention_type](embed_dim, num_heads, drop_path=rate, **settings) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, 1e-6)
        self._initialise()
        self._freeze(freeze)

    def _initialise(self) -> None:
        """TimeSformer's start, in which time attention adds nothing; LaViLa's has zeros in front of a matrix of ones,
        for with two of zeros it would get no gradient."""
        for parameter in (self.pos_embed, self.cls_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            if isinstance(block, DividedBlock):
                nn.init.zeros_(block.temporal_fc.weight)
            elif isinstance(block, FrozenInTimeBlock):
                nn.init.zeros_(block.temporal_attn.qkv.weight)
                nn.init.ones_(block.temporal_attn.proj.weight)

    def _freeze(self, what: str) -> None:
        for name, parameter in self.named_parameters():
            temporal = any(part in name for part in TEMPORAL)
            parameter.requires_grad = {"nothing": True, "space": temporal, "time": not temporal, "all": False}[what]

    def tokens(self, video: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to normalised tokens `[B, 1 + T*N, D]`; with space_only `[B, 1 + N, D]`, their means over
        the frames."""
        return self._transformed(video, alone=False)

    def lead(self, video: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to the normalised class token `[B, D]`, for less work than all tokens."""
        return self._transformed(video, alone=True)[:, 0]

    def _transformed(self, video: Tensor, alone: bool) -> Tensor:
        check_clip(self, video)
        frames, last = video.shape[2], len(self.blocks) - 1
        x = self._embedded(video)
        for number, block in enumerate(self.blocks):
            settings = (x, frames, alone and number == last)
            again = self.act_checkpoint and self.training
            x = checkpoint(block, *settings, use_reentrant=False) if again else block(*settings)
        if self.attention_type == "space_only":
            x = x.unflatten(0, (-1, frames)).mean(1)
        return self.norm(x)

    def feature_map(self, video: Tensor) -> dict[str, Tensor]:
        """The normalised tokens: `cls` `[B, D]` and `map` `[B, T, H, W, D]` (space_only: T = 1)."""
        x = self.tokens(video)
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        return {"cls": x[:, 0], "map": x[:, 1:].unflatten(1, (-1, side, side))}

    def _embedded(self, video: Tensor) -> Tensor:
        """The tokens that enter the first block; with space_only each frame is a clip, `[B*T, 1 + N, D]`."""
        x = self.patch_embed(video) + self.pos_embed[:, None, 1:]  # [B, T, N, D]
        apart = self.attention_type == "space_only"
        x = x.flatten(0, 1) if apart else (x + self.time_embed[:, :, None]).flatten(1, 2)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1).type_as(x), x], dim=1)
        return x if self.ln_pre is None else self.ln_pre(x)

    def resize_positions(self, weights: dict[str, Tensor], clip=None) -> tuple[dict[str, Tensor], list[str], list[str]]:
        """The weights with position tables of another clip shape resized, the names of these, and none made new.

        `clip`, the shape of the file's clips, is not needed: space and time have a table each.
        """
        resized = {}
        time = "cut" if self.resize == "linear" and self.attention_type == "frozen_in_time" else self.resize
        for name, made, how in (("pos_embed", resized_space, self.resize), ("time_embed", resized_time, time)):
            target, source = getattr(self, name, None), weights.get(name)
            if target is None or source is None or source.shape == target.shape:
                continue
            if source.ndim == 3 and source.shape[2] == target.shape[2]:
                resized[name] = made(source, target.shape[1], how)
        return {**weights, **resized}, list(resized), []

    def no_weight_decay(self) -> set[str]:
        """Parts of the names of the parameters that weight decay leaves alone."""
        return {"pos_embed", "time_embed", "cls_token"} if self.zero_decay_pos_cls else set()

    def layer_of(self, name: str) -> int:
        """The layer of a parameter for layer-wise decay: 0 patches and positions, i + 1 block i, depth + 1 the rest."""
        if name.startswith(("patch_embed.", "pos_embed", "time_embed", "cls_token", "ln_pre.")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else len(self.blocks) + 1


def check_shape(size: int, patch: int, dim: int, heads: int) -> None:
    if size % patch:
        raise UserError(
            f"DATA.TRAIN_CROP_SIZE {size}: expected a multiple of TIMESFORMER.PATCH_SIZE {patch}; change one of them"
        )
    if dim % heads:
        raise UserError(
            f"{heads} attention heads do not divide a width of {dim}; change TIMESFORMER.NUM_HEADS or EMBED_DIM"
        )


def resized_space(table: Tensor, rows: int, how: str) -> Tensor:
    """A table `[1, 1 + N, D]` of a square grid for another one of `rows` rows; its first row, of the class, stays."""
    lead, places = table[:, :1], table[:, 1:]
    sides = math.isqrt(places.shape[1]), math.isqrt(rows - 1)
    if sides[0] ** 2 != places.shape[1]:
        return table  # of no square: it will be said not to fit
    grid = places.unflatten(1, (sides[0], -1)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(sides[1], sides[1]), mode="nearest" if how == "nearest" else "bicubic")
    return torch.cat([lead, grid.flatten(2).transpose(1, 2)], dim=1)


def resized_time(table: Tensor, frames: int, how: str) -> Tensor:
    """A table `[1, T, D]` for another number of frames: nearest, linear, or cut: the first rows, linear for more."""
    if how == "cut" and frames < table.shape[1]:
        return table[:, :frames]
    return F.interpolate(table.transpose(1, 2), size=frames, mode="nearest" if how == "nearest" else "linear").mT


def resize_inside(tower: Tower, front: str, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list]:
    """`Tower.resize_positions` for the tower of a model, where its names begin with `front`."""
    inner = {name.removeprefix(front): value for name, value in weights.items() if name.startswith(front)}
    resized, names, _ = tower.resize_positions(inner)
    return {**weights, **{front + name: resized[name] for name in names}}, [front + name for name in names], []


@MODELS.register("TimeSformer", node="TIMESFORMER")
class TimeSformer(Tower):
    """The tower with a classifier on its class token."""

    def __init__(self, spec: Spec, **tower):
        super().__init__(spec, **tower)
        self.head = class_head(spec, self.dim)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """`[B, C, T, H, W]` to raw logits `[B, classes]` and features `[B, D]`."""
        features = self.lead(video)
        return {**self.head(features), "features": features}
