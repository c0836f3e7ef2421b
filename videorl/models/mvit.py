"""MViT, the multiscale video transformer, in its first and second version, as published in PySlowFast.

Fan et al., Multiscale Vision Transformers, ICCV 2021; Li et al., MViTv2, CVPR 2022; reference code:
facebookresearch/SlowFast. State-dict names are those of PySlowFast, so its `.pyth` files load by name. The keys
SKIP_PROJ_RAW and POOL_NORM_EPS give the variant of JunweiLiang/MultiTrain.

Tokens are `[B, L + T*H*W, C]`: L = 1 class token or none, then the grid in order of time, row, column.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videorl.models.clips import check_clip
from videorl.models.heads import class_head, hidden_width
from videorl.registry import MODELS, Count, NonNegative, Positive, Range, Share, UserError
from videorl.spec import Spec

EPS = 1e-6
AXES = "thw"
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """The shape of one block: widths, heads, and the kernel (none: no pooling) and stride of its poolings."""

    dim: int
    dim_attn: int
    dim_out: int
    heads: int
    grid: Grid
    nominal_grid: Grid  # sizes rounded down where pooling rounds up: PySlowFast sizes its tables by these
    kernel_q: Grid | None
    stride_q: Grid
    kernel_kv: Grid | None
    stride_kv: Grid

    def pooling(self, name: str) -> tuple[Grid | None, Grid]:
        return (self.kernel_q, self.stride_q) if name == "q" else (self.kernel_kv, self.stride_kv)


def pooled(grid: Grid, stride: Grid) -> Grid:
    """The grid after pooling with padding kernel // 2: sizes round up."""
    return tuple(-(-size // step) for size, step in zip(grid, stride))


def floored(grid: Grid, stride: Grid) -> Grid:
    return tuple(size // step for size, step in zip(grid, stride))


def round_width(width: float, multiplier: float, divisor: int = 1) -> int:
    """`width * multiplier` as a multiple of `divisor`, never more than a tenth below it."""
    width *= multiplier
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


class DepthwiseConv(torch.autograd.Function):
    """Depthwise 3-D convolution whose gradients are sums of 2-D convolutions, one per temporal tap.

    oneDNN has a fast forward kernel for it but none backward: this form is 2 to 4 times as fast in float32 and, as
    bfloat16 falls back to reference loops there, 10 to 20 times in bfloat16. Gradients are summed in float32 at least.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: Grid) -> Tensor:
        """`[B, C, T, H, W]` and `[C, 1, kT, kH, kW]` to `[B, C, T', H', W']`, padded by kernel // 2."""
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return conv3d_depthwise(x, weight, stride)

    @staticmethod
    def backward(ctx, grad: Tensor):
        saved, (step, *stride) = ctx.saved_tensors, ctx.stride
        exact = torch.promote_types(saved[1].dtype, torch.float32)
        # Time in front: the frames that one tap sees are then a dense slice for any batch size.
        x, grad = (frames_first(t).to(exact) for t in (saved[0], grad))  # [T, B, C, H, W]
        weight = saved[1].to(exact)
        grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
        padding = [size // 2 for size in weight.shape[2:]]
        for tap in range(weight.shape[2]):
            shift = tap - padding[0]
            first, last = max(0, -(shift // step)), min(len(grad) - 1, (len(x) - 1 - shift) // step)
            if last < first:
                continue
            seen = slice(first * step + shift, last * step + shift + 1, step)
            grad_frames, grad_tap, _ = torch.ops.aten.convolution_backward(
                grad[first : last + 1].flatten(0, 1), x[seen].flatten(0, 1), weight[:, :, tap], None,
                stride, padding[1:], [1, 1], False, [0, 0], x.shape[2], [True, True, False],
            )  # fmt: skip
            grad_x[seen] += grad_frames.unflatten(0, (-1, x.shape[1]))
            grad_weight[:, :, tap] = grad_tap
        return grad_x.permute(1, 2, 0, 3, 4).to(saved[0].dtype), grad_weight.to(saved[1].dtype), None


def frames_first(x: Tensor) -> Tensor:
    """`[B, C, T, H, W]` to `[T, B, C, H, W]` with dense channels-last frames."""
    return x.permute(2, 0, 3, 4, 1).contiguous().permute(0, 1, 4, 2, 3)


def conv3d_depthwise(x: Tensor, weight: Tensor, stride: Grid) -> Tensor:
    return F.conv3d(x, weight, None, stride, [size // 2 for size in weight.shape[2:]], groups=x.shape[1])


def split_class(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Tokens `[B, L + N, C]` as class tokens `[B, L, C]` and a grid `[B, C, T, H, W]`, channels-last in memory."""
    size = math.prod(grid)
    lead, x = x.split((x.shape[1] - size, size), dim=1)
    return lead, x.unflatten(1, grid).permute(0, 4, 1, 2, 3)


def join_class(lead: Tensor, x: Tensor) -> Tensor:
    return torch.cat([lead, x.flatten(2).transpose(1, 2)], dim=1)


class DepthwisePool(nn.Conv3d):
    """Pools tokens by a depthwise convolution that all heads share; the class token passes by."""

    def __init__(self, channels: int, heads: int, kernel: Grid, stride: Grid):
        super().__init__(channels, channels, kernel, stride, groups=channels, bias=False)
        self.heads = heads

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """`[B, L + N, heads * channels]` to `[B, L + N', heads * channels]`."""
        # Heads stay side by side as channels: the tokens are already channels-last, and nothing is transposed.
        lead, x = split_class(x, grid)
        weight = self.weight.repeat(self.heads, 1, 1, 1, 1)
        convolve = DepthwiseConv.apply if x.device.type == "cpu" else conv3d_depthwise
        return join_class(lead, convolve(x, weight, self.stride))


def max_pool(x: Tensor, grid: Grid, stride: Grid) -> Tensor:
    """Max-pools tokens with kernel stride + 1 along the axes with a stride above 1; the class token passes by."""
    if math.prod(stride) == 1:
        return x
    kernel = [step + 1 if step > 1 else 1 for step in stride]
    lead, x = split_class(x, grid)
    return join_class(lead, F.max_pool3d(x, kernel, stride, [size // 2 for size in kernel]))


def relative_index(queries: int, keys: int) -> np.ndarray:
    """Row of the relative-position table for each query and key along one axis, int64 `[queries, keys]`."""
    # The order of these float32 operations decides how ties truncate; published weights were trained with it.
    step_q, step_k = max(keys / queries, 1.0), max(queries / keys, 1.0)
    places_q, places_k = np.arange(queries, dtype=np.float32), np.arange(keys, dtype=np.float32)
    distance = places_q[:, None] * np.float32(step_q) - places_k * np.float32(step_k)
    return (distance + np.float32((keys - 1) * step_k)).astype(np.int64)


def key_coordinates(grid: Grid, axes: str, lead: int) -> np.ndarray:
    """Coordinates of each key along `axes`, one-hot, side by side; zeros for the class token. `[L + N, width]`."""
    places = np.indices(grid).reshape(3, -1)
    hot = [np.eye(grid[AXES.index(axis)], dtype=np.float32)[places[AXES.index(axis)]] for axis in axes]
    hot = np.concatenate(hot, axis=1)
    # Fused attention is fastest, and on some devices only possible, for widths that are multiples of 8.
    return np.pad(hot, ((lead, 0), (0, -hot.shape[1] % 8)))


def resize_rows(table: Tensor, rows: int) -> Tensor:
    """A table `[R, C]` as `[rows, C]`, by linear interpolation."""
    if table.shape[0] == rows:
        return table
    return F.interpolate(table.T[None], size=rows, mode="linear")[0].T


class Attention(nn.Module):
    """Attention whose queries, keys and values are first pooled on the token grid.

    The relative-position bias of query i and key j is a sum over axes of `q_i . R[i, j]`. Here it is folded into the
    product: the query is extended by `q_i . R[i, c]` for every coordinate c of the key grid, the key by its one-hot
    coordinates. Plain fused attention then gives `q_i . k_j + bias_ij`, and no tensor of the size of the attention
    matrix is made, forward or backward.
    """

    def __init__(self, plan: Plan, lead: int, *, qkv_bias: bool, axes: str, residual: bool, eps: float, dropout: float):
        super().__init__()
        self.plan, self.lead, self.axes, self.residual = plan, lead, axes, residual
        self.channels = plan.dim_attn // plan.heads
        self.qkv = nn.Linear(plan.dim, 3 * plan.dim_attn, bias=qkv_bias)
        self.proj = nn.Linear(plan.dim_attn, plan.dim_attn)
        self.dropout = nn.Dropout(dropout)
        for name in "qkv":
            kernel, stride = plan.pooling(name)
            if kernel:
                self.add_module(f"pool_{name}", DepthwisePool(self.channels, plan.heads, kernel, stride))
                self.add_module(f"norm_{name}", nn.LayerNorm(self.channels, eps))
        if axes:
            self._add_positions()

    def _add_positions(self) -> None:
        plan = self.plan
        self.grid_q, grid_kv = pooled(plan.grid, plan.stride_q), pooled(plan.grid, plan.stride_kv)
        nominal_q, nominal_kv = floored(plan.nominal_grid, plan.stride_q), floored(plan.nominal_grid, plan.stride_kv)
        for axis in self.axes:
            i = AXES.index(axis)
            table = torch.zeros(2 * max(nominal_q[i], nominal_kv[i]) - 1, self.channels)
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(table))
            index = torch.tensor(relative_index(self.grid_q[i], grid_kv[i]))
            self.register_buffer(f"index_{axis}", index, persistent=False)
        coordinates = torch.tensor(key_coordinates(grid_kv, self.axes, self.lead))
        self.register_buffer("coordinates", coordinates, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L + N, dim]` to `[B, L + N', dim_attn]`, N' by the query stride."""
        weights = self.qkv.weight.chunk(3)
        biases = (None, None, None) if self.qkv.bias is None else self.qkv.bias.chunk(3)
        q, k, v = (self._pool(*part) for part in zip("qkv", (F.linear(x, w, b) for w, b in zip(weights, biases))))
        query, key, value = self._extend(q, k, v) if self.axes else (q, k, v)  # [B, L + N', heads, C + extra]
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, scale=self.channels**-0.5)
        out = out.transpose(1, 2)[..., : self.channels]
        if self.residual:
            not_class = torch.arange(q.shape[1], device=q.device) >= self.lead
            out = torch.addcmul(out, q, not_class.to(q.dtype)[:, None, None])
        return self.dropout(self.proj(out.flatten(2)))

    def _pool(self, name: str, x: Tensor) -> Tensor:
        if not self.plan.pooling(name)[0]:
            return x.unflatten(2, (self.plan.heads, -1))
        x = getattr(self, f"pool_{name}")(x, self.plan.grid)
        return getattr(self, f"norm_{name}")(x.unflatten(2, (self.plan.heads, -1)))

    def _extend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        terms, hot = self._position_terms(q).to(q.dtype), self.coordinates.to(k.dtype)
        query = torch.cat([q, terms], dim=-1)
        key = torch.cat([k, hot[None, :, None].expand(*k.shape[:3], -1)], dim=-1)
        # Fused attention wants values as wide as keys.
        return query, key, F.pad(v, (0, hot.shape[1]))

    def _position_terms(self, q: Tensor) -> Tensor:
        """What each coordinate of the key grid adds to the logits of a query, `[B, L + N', heads, extra]`."""
        grid = q[:, self.lead :].unflatten(1, self.grid_q)  # [B, T, H, W, heads, C]
        terms = []
        for axis in self.axes:
            index = getattr(self, f"index_{axis}")
            # These terms are not scaled in the published model, but attention scales all it multiplies.
            table = resize_rows(getattr(self, f"rel_pos_{axis}"), 2 * max(index.shape) - 1) * self.channels**0.5
            terms.append(torch.einsum(f"bthwnc,{axis}kc->bthwnk", grid, table[index]))
        terms = torch.cat(terms, dim=-1).flatten(1, 3)
        return F.pad(terms, (0, self.coordinates.shape[1] - terms.shape[-1], 0, 0, self.lead, 0))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, dim_out: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class DropPath(nn.Module):
    """Drops a residual branch for a whole sample with probability `rate`, and scales up the branches it keeps.

    `shape`: that of what is kept or dropped as one, where it is not the sample.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(shape or (x.shape[0], 1, 1)).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


def scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma


class Block(nn.Module):
    """Pooling attention and an MLP. The skip path is pooled like the queries, and projected where the width changes."""

    def __init__(
        self,
        plan: Plan,
        lead: int,
        *,
        mlp_ratio: float,
        drop_path: float,
        dropout: float,
        layer_scale: float,
        skip_raw: bool,
        **attention,
    ):
        super().__init__()
        self.plan, self.skip_raw = plan, skip_raw
        self.norm1 = nn.LayerNorm(plan.dim, EPS)
        self.attn = Attention(plan, lead, dropout=dropout, **attention)
        self.norm2 = nn.LayerNorm(plan.dim_attn, EPS)
        self.mlp = Mlp(plan.dim_attn, hidden_width(plan.dim_attn, mlp_ratio), plan.dim_out, dropout)
        self.drop_path = DropPath(drop_path)
        if plan.dim != plan.dim_out:
            self.proj = nn.Linear(plan.dim, plan.dim_out)
        self.gamma_1 = nn.Parameter(torch.full((plan.dim_attn,), layer_scale)) if layer_scale else None
        self.gamma_2 = nn.Parameter(torch.full((plan.dim_out,), layer_scale)) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L + N, dim]` to `[B, L + N', dim_out]`."""
        y = self.norm1(x)
        skip = x
        if self.plan.dim != self.plan.dim_attn:
            skip = self.proj(x if self.skip_raw else y)
        skip = max_pool(skip, self.plan.grid, self.plan.stride_q)
        x = skip + self.drop_path(scaled(self.attn(y), self.gamma_1))
        y = self.norm2(x)
        skip = self.proj(y) if self.plan.dim_attn != self.plan.dim_out else x
        return skip + self.drop_path(scaled(self.mlp(y), self.gamma_2))


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int, kernel: Grid, stride: Grid, padding: Grid):
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, kernel, stride, padding)

    def grid(self, clip: Grid) -> Grid:
        """The token grid of a clip of frames, rows, columns."""
        shape = zip(clip, self.proj.padding, self.proj.kernel_size, self.proj.stride)
        return tuple((size + 2 * pad - kernel) // step + 1 for size, pad, kernel, step in shape)

    def forward(self, video: Tensor) -> Tensor:
        """`[B, channels, T, H, W]` to tokens `[B, N, dim]`."""
        return self.proj(video).flatten(2).transpose(1, 2)


def block_plans(
    depth: int,
    dim: int,
    heads: int,
    grid: Grid,
    nominal: Grid,
    *,
    dim_mul,
    head_mul,
    widen_in_attention: bool,
    stride_q,
    stride_kv: Grid | None,
    kernel: Grid | None,
) -> list[Plan]:
    """The plan of every block. `dim_mul`, `head_mul` and `stride_q` are rows that begin with the block's number."""
    dim_mul, head_mul = dict(dim_mul), dict(head_mul)
    stride_q = {int(row[0]): tuple(row[1:]) for row in stride_q}
    plans = []
    for i in range(depth):
        heads = round_width(heads, head_mul.get(i, 1.0))
        widening = i if widen_in_attention else i + 1
        dim_out = round_width(dim, dim_mul.get(widening, 1.0), round_width(heads, head_mul.get(widening, 1.0)))
        step_q = stride_q.get(i, (1, 1, 1))
        stride_kv = stride_kv and tuple(max(kv // q, 1) for kv, q in zip(stride_kv, step_q))
        plan = Plan(
            dim=dim,
            dim_attn=dim_out if widen_in_attention else dim,
            dim_out=dim_out,
            heads=heads,
            grid=grid,
            nominal_grid=nominal,
            kernel_q=pool_kernel(kernel, step_q) if i in stride_q else None,
            stride_q=step_q,
            kernel_kv=pool_kernel(kernel, stride_kv) if stride_kv else None,
            stride_kv=stride_kv or (1, 1, 1),
        )
        plans.append(plan)
        dim, grid, nominal = dim_out, pooled(grid, step_q), floored(nominal, step_q)
    return plans


def pool_kernel(kernel: Grid | None, stride: Grid) -> Grid | None:
    """The kernel of a pooling, stride + 1 where none is given; none where pooling would change nothing."""
    kernel = tuple(kernel) if kernel else tuple(step + 1 if step > 1 else 1 for step in stride)
    if any(size % 2 == 0 for size in kernel):
        raise UserError(f"MVIT pooling kernels must be odd, found {kernel} for stride {stride}; set POOL_KVQ_KERNEL")
    return None if math.prod(kernel) == math.prod(stride) == 1 else kernel


def _check_published(**values) -> None:
    published = {"MODE": "conv", "POOL_FIRST": False, "NORM": "layernorm"}
    for key, value in values.items():
        if value != published[key]:
            raise UserError(f"MVIT.{key}: expected {published[key]!r}, the one published form, found {value!r}")


class Encoder(nn.Module):
    """What MViT and the masked autoencoder of the same settings share: patch embedding, positions, blocks, norm.

    The clip shape of the spec fixes the token grid; `resize_positions` fits a checkpoint of another clip shape.

    Keys:
        mode: how tokens are pooled; only "conv", the mode of all published settings
        pool_first: pool before the projections to queries, keys and values; only False
        norm: only "layernorm"
        patch_kernel: kernel of the patch embedding: frames, rows, columns
        patch_stride: its stride
        patch_padding: its zero padding
        embed_dim: channels after the patch embedding
        num_heads: attention heads of the first block
        depth: number of blocks
        mlp_ratio: hidden width of the MLPs, as a multiple of the block's width
        qkv_bias: queries, keys and values have a bias
        dropout_rate: dropout of tokens, attention output and MLPs
        droppath_rate: drop path of the last block; it rises linearly from 0 in the first
        layer_scale_init_value: start of a learned scale per channel on both branches; 0 for none
        dim_mul: rows [block, factor] by which the width grows there
        head_mul: rows [block, factor] by which the number of heads grows there
        dim_mul_in_att: grow in the attention of that block (v2), not in the MLP of the block before (v1)
        pool_q_stride: rows [block, frames, rows, columns]: the blocks that pool their queries, and the stride
        pool_kv_stride_adaptive: stride of keys and values in the first block, divided by each query stride; None: none
        pool_kvq_kernel: kernel of all poolings; None for stride + 1
        pool_norm_eps: epsilon of the norms after pooling (MultiTrain: 1e-5)
        residual_pooling: add the pooled queries to the attention output (v2)
        skip_proj_raw: where the width grows in attention, project the block's raw input, not its norm (MultiTrain)
        cls_embed_on: put a class token in front
        use_abs_pos: absolute positions, learned
        sep_pos_embed: these are separate tables for time, space and the class token
        use_fixed_sincos_pos: they are fixed, sines and cosines, not learned
        rel_pos_spatial: relative positions along rows and columns in every attention (v2)
        rel_pos_temporal: relative positions along time in every attention (v2)
        zero_decay_pos_cls: no weight decay for positions and class token
    """

    def __init__(
        self,
        spec: Spec,
        *,
        mode: str = "conv",
        pool_first: bool = False,
        norm: str = "layernorm",
        patch_kernel: Annotated[tuple[int, ...], Range("3 numbers >= 1")] = (3, 7, 7),
        patch_stride: Annotated[tuple[int, ...], Range("3 numbers >= 1")] = (2, 4, 4),
        patch_padding: Annotated[tuple[int, ...], Range("3 numbers >= 0")] = (2, 4, 4),
        embed_dim: Count = 96,
        num_heads: Count = 1,
        depth: Count = 16,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        dropout_rate: Share = 0.0,
        droppath_rate: Share = 0.1,
        layer_scale_init_value: NonNegative = 0.0,
        dim_mul: Annotated[tuple[tuple[float, ...], ...], Range("rows of a block, 1 number > 0")] = (),
        head_mul: Annotated[tuple[tuple[float, ...], ...], Range("rows of a block, 1 number > 0")] = (),
        dim_mul_in_att: bool = False,
        pool_q_stride: Annotated[tuple[tuple[int, ...], ...], Range("rows of a block, 3 numbers >= 1")] = (),
        pool_kv_stride_adaptive: Annotated[tuple[int, ...] | None, Range("3 numbers >= 1")] = None,
        pool_kvq_kernel: Annotated[tuple[int, ...] | None, Range("3 numbers >= 1")] = None,
        pool_norm_eps: Positive = EPS,
        residual_pooling: bool = False,
        skip_proj_raw: bool = False,
        cls_embed_on: bool = True,
        use_abs_pos: bool = True,
        sep_pos_embed: bool = False,
        use_fixed_sincos_pos: bool = False,
        rel_pos_spatial: bool = False,
        rel_pos_temporal: bool = False,
        zero_decay_pos_cls: bool = True,
    ):
        super().__init__()
        _check_published(MODE=mode, POOL_FIRST=pool_first, NORM=norm)
        self.act_checkpoint = spec.act_checkpoint
        self.zero_decay_pos_cls, self.lead = zero_decay_pos_cls, int(cls_embed_on)
        self.clip = (spec.clip.channels, spec.clip.frames, spec.clip.train_size, spec.clip.train_size)
        self.patch_embed = PatchEmbed(spec.clip.channels, embed_dim, patch_kernel, patch_stride, patch_padding)
        self.grid = self.patch_embed.grid(self.clip[1:])
        self._add_positions(embed_dim, use_abs_pos, sep_pos_embed, use_fixed_sincos_pos)
        self.dropout = nn.Dropout(dropout_rate)
        widths = {"dim_mul": dim_mul, "head_mul": head_mul, "widen_in_attention": dim_mul_in_att}
        pooling = {"stride_q": pool_q_stride, "stride_kv": pool_kv_stride_adaptive, "kernel": pool_kvq_kernel}
        nominal = floored(self.clip[1:], patch_stride)
        plans = block_plans(depth, embed_dim, num_heads, self.grid, nominal, **widths, **pooling)
        attention = {"qkv_bias": qkv_bias, "residual": residual_pooling, "eps": pool_norm_eps}
        attention["axes"] = "hw" * rel_pos_spatial + "t" * rel_pos_temporal
        block = {"mlp_ratio": mlp_ratio, "dropout": dropout_rate, "layer_scale": layer_scale_init_value}
        rates = [droppath_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(plan, self.lead, drop_path=rate, skip_raw=skip_proj_raw, **block, **attention)
            for plan, rate in zip(plans, rates)
        )
        self.norm = nn.LayerNorm(plans[-1].dim_out, EPS)

    def _add_positions(self, dim: int, absolute: bool, separate: bool, fixed: bool) -> None:
        shapes = {"cls_token": self.lead}
        if absolute and fixed:
            self.register_buffer("pos_embed", separable_sincos(self.grid, dim, self.lead)[None])
        elif absolute and separate:
            frames, space = self.grid[0], self.grid[1] * self.grid[2]
            shapes |= {"pos_embed_spatial": space, "pos_embed_temporal": frames, "pos_embed_class": self.lead}
        elif absolute:
            shapes |= {"pos_embed": self.lead + math.prod(self.grid)}
        for name, rows in shapes.items():
            if rows:
                self.register_parameter(name, nn.Parameter(torch.zeros(1, rows, dim)))

    def _initialise(self) -> None:
        """PySlowFast's start: normal weights (sigma 0.02), and 0.02 for the biases of linear layers and norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.constant_(module.bias, 0.02)
        for name, parameter in self.named_parameters():
            if "pos" in name.rpartition(".")[2] or name in ("cls_token", "mask_token"):
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, video: Tensor) -> Tensor:
        """The tokens that enter the first block, with class token and absolute positions."""
        x = self.patch_embed(video)
        if self.lead:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        positions = self.positions()
        return self.dropout(x if positions is None else x + positions)

    def positions(self) -> Tensor | None:
        """Absolute positions `[1, L + T*H*W, C]` of class token and grid, if there are any."""
        if hasattr(self, "pos_embed"):
            return self.pos_embed
        if not hasattr(self, "pos_embed_spatial"):
            return None
        positions = (self.pos_embed_temporal[:, :, None] + self.pos_embed_spatial[:, None]).flatten(1, 2)
        return torch.cat([self.pos_embed_class, positions], dim=1) if self.lead else positions

    def through_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.act_checkpoint and self.training else block(x)
        return x

    def resize_positions(self, weights: dict[str, Tensor], clip: Grid | None = None):
        """The weights with their position tables fit for this model's clips: see `resize_positions`."""
        return resize_positions(weights, self, clip)

    def no_weight_decay(self) -> set[str]:
        """Parts of the names of the parameters that weight decay leaves alone."""
        if not self.zero_decay_pos_cls:
            return set()
        names = {"pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class", "cls_token"}
        names |= {f"rel_pos_{axis}" for axis in AXES}
        return {part for part in names if any(part in name for name, _ in self.named_parameters())}

    def layer_of(self, name: str) -> int:
        """The layer of a parameter for layer-wise decay: 0 embeddings, i + 1 block i, depth + 1 the rest."""
        if name.startswith(("cls_token", "pos_embed", "patch_embed")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return len(self.blocks) + 1


@MODELS.register("MViT", node="MVIT")
class MViT(Encoder):
    """MViTv1, MViTv2 and the plain video ViT: PySlowFast's model of that name.

    Keys:
        use_mean_pooling: average the patch tokens, then norm; else norm, then the class token or, without one, the mean
        head_init_scale: factor on the initial weights of the classifier
    """

    def __init__(self, spec: Spec, *, use_mean_pooling: bool = False, head_init_scale: NonNegative = 1.0, **encoder):
        super().__init__(spec, **encoder)
        self.mean_pooling = use_mean_pooling
        self.head = class_head(spec, self.norm.normalized_shape[0])
        self._initialise()
        self._scale_head(head_init_scale)

    @torch.no_grad()
    def _scale_head(self, factor: float) -> None:
        for name, axes in self.head.class_axes().items():
            if len([axis for axis in axes if axis]) == 1:  # not the maps from one head to another
                self.head.get_parameter(name).mul_(factor)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """`[B, channels, T, H, W]` to raw logits `[B, classes]` and features `[B, D]`."""
        check_clip(self, video)
        features = self.pool(self.through_blocks(self.embed(video)))
        return {**self.head(features), "features": features}

    def feature_map(self, video: Tensor) -> dict[str, Tensor]:
        """The normalised tokens of the last block: `map` `[B, T, H, W, D]` and, where there is one, `cls` `[B, D]`."""
        check_clip(self, video)
        x = self.norm(self.through_blocks(self.embed(video)))
        found = {"map": x[:, self.lead :].unflatten(1, self.blocks[-1].attn.grid_q)}
        return {"cls": x[:, 0], **found} if self.lead else found

    def pool(self, x: Tensor) -> Tensor:
        """Tokens of the last block to features `[B, D]`."""
        if self.mean_pooling:
            return self.norm(x[:, self.lead :].mean(1))
        x = self.norm(x)
        return x[:, 0] if self.lead else x.mean(1)


def separable_sincos(grid: Grid, dim: int, lead: int) -> Tensor:
    """Fixed positions `[lead + T*H*W, dim]`: sines, then cosines, of the time in a quarter of the channels, then of the
    column and of the row in three eighths each; zeros for the class token. Raises `UserError` for other widths.
    """
    if dim % 16:
        raise UserError(f"fixed positions in time and space: expected a width that is a multiple of 16, found {dim}")
    time, row, column = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    parts = [_waves(time, dim // 4), _waves(column, dim // 8 * 3), _waves(row, dim // 8 * 3)]
    return F.pad(torch.cat(parts, dim=1), (0, 0, lead, 0))


def _waves(place: Tensor, dim: int) -> Tensor:
    """Sines and cosines `[N, dim]` of places `[N]` at dim / 2 frequencies that fall from 1 to 1 / 10000."""
    frequency = 10000 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = place.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def resize_positions(
    state_dict: dict[str, Tensor], model: nn.Module, clip: Grid | None = None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """A checkpoint of another clip shape with its position tables fit for `model`; other tensors are the same objects.

    Relative and temporal tables are interpolated linearly, the spatial table (a square grid) bicubically, a joint one
    both ways; it needs `clip`, frames, rows, columns of the file's clips. Fixed tables are made new. Also the names of
    what was interpolated and of what was made new. Raises `UserError` for grids that do not fit or are not known.
    """
    resized, fixed = {}, [name for name, _ in model.named_buffers() if name == "pos_embed"]
    for name, target in model.state_dict().items():
        source = state_dict.get(name)
        if source is None or source.shape == target.shape or name in fixed:
            continue
        if ".rel_pos_" in name:
            resized[name] = resize_rows(source, len(target))
        elif name == "pos_embed_temporal":
            resized[name] = resize_rows(source[0], target.shape[1])[None]
        elif name == "pos_embed_spatial":
            resized[name] = _resize_square(source, target.shape[1])
        elif name == "pos_embed" and source.ndim == 3 and source.shape[-1] == target.shape[-1]:
            resized[name] = _resize_joint(source, model, clip)
    own = model.state_dict()
    new = {name: own[name] for name in fixed if name not in state_dict or state_dict[name].shape != own[name].shape}
    return {**state_dict, **resized, **new}, list(resized), list(new)


def _resize_joint(table: Tensor, model: nn.Module, clip: Grid | None) -> Tensor:
    """`[1, L + T*H*W, C]` to the grid of the model; the row of the class token stays."""
    lead, rows = table[:, : model.lead], table[0, model.lead :]
    grid = model.patch_embed.grid(clip) if clip else None
    if grid is None or math.prod(grid) != len(rows):
        of = (
            f"clips of {clip} frames, rows, columns have {math.prod(grid)}" if clip else "it does not say of what clips"
        )
        raise UserError(
            f"pos_embed: found a table of {len(rows)} tokens, {math.prod(model.grid)} here, and {of}; set"
            " MODEL.CHECKPOINT_CLIP to frames, rows and columns of the clips that the file was made for"
        )
    return torch.cat([lead, resize_table(rows.view(*grid, -1), model.grid).flatten(0, 2)[None]], dim=1)


def resize_table(table: Tensor, grid: Grid) -> Tensor:
    """`[T, H, W, D]` on another grid: bicubic in space, linear in time."""
    frames, *size = grid
    space = F.interpolate(table.permute(0, 3, 1, 2), size=size, mode="bicubic")  # [T, D, H', W']
    time = F.interpolate(space.flatten(1).T[None], size=frames, mode="linear")[0].T  # [T', D*H'*W']
    return time.unflatten(1, space.shape[1:]).permute(0, 2, 3, 1).contiguous()


def _resize_square(table: Tensor, places: int) -> Tensor:
    """`[1, S*S, C]` to `[1, places, C]`, both square grids."""
    old, new = math.isqrt(table.shape[1]), math.isqrt(places)
    if old**2 != table.shape[1] or new**2 != places:
        raise UserError(f"pos_embed_spatial: expected square grids, found {table.shape[1]} and {places} places")
    grid = table.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=(new, new), mode="bicubic").flatten(2).transpose(1, 2)
