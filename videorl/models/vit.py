"""The video ViT of VideoMAE, and the blocks that it shares with the masked autoencoder.

Tong et al., VideoMAE, NeurIPS 2022; Wang et al., VideoMAE V2, CVPR 2023; reference code: MCG-NJU/VideoMAE,
OpenGVLab/VideoMAEv2. Names of weights are theirs, but for the head and the positions, which their files leave out.

Tokens are `[B, N, D]`, the grid in order of time, row, column; patches `[B, N, P]` are in order of frame, row, column,
colour (see `videorl.metrics.pixels`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videorl.clip.masks import token_grid
from videorl.models.clips import check_clip
from videorl.models.heads import Mlp, class_head, hidden_width
from videorl.models.mvit import EPS, DropPath, Grid, floored, resize_table
from videorl.registry import MODELS, Count, NonNegative, Positive, Share, UserError
from videorl.spec import Spec


def sincos_positions(grid: Grid, dim: int) -> Tensor:
    """Fixed positions `[T, H, W, dim]`: sin and cos of n / 10000^(2 (j // 2) / dim), n the number of the token."""
    number = torch.arange(grid[0] * grid[1] * grid[2], dtype=torch.float64)
    channel = torch.arange(dim, dtype=torch.float64)
    angle = number[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().view(*grid, dim)


def resize_positions(
    weights: dict[str, Tensor], model: nn.Module, clip: Grid | None = None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """A checkpoint of another clip shape with its tables `positions` fit for `model`.

    Also the names of those that were interpolated, and of fixed ones (`sincos_positions`) that were made new, as
    VideoMAE's own code does, whose files mostly have none. `clip`: frames, rows, columns of the file's clips, where
    they are known. A table may be flat, `[1, 1, N, D]`: raises `UserError` where one that is not fixed has another N
    than here and no known clip.
    """
    fitted, interpolated, new = {}, [], []
    for name, target in model.named_buffers():
        source = weights.get(name)
        if not name.endswith("positions") or (source is not None and source.shape == target.shape):
            continue
        if source is None:
            fitted[name] = target
            new.append(name)
            continue
        if source.ndim != 4 or source.shape[-1] != target.shape[-1]:
            continue
        table = source.flatten(0, 2)  # [N, D]
        if _is_sincos(table):
            fitted[name] = target
            new += [name] * (len(table) != target.shape[:3].numel())
            continue
        grid = tuple(source.shape[:3])
        if grid[:2] == (1, 1):
            grid = _grid_of(name, len(table), clip, model.patch, target.shape[:3])
        if grid == target.shape[:3]:
            fitted[name] = table.view(target.shape)
        else:
            fitted[name] = resize_table(table.view(*grid, -1), target.shape[:3])
            interpolated.append(name)
    return {**weights, **fitted}, interpolated, new


def _is_sincos(table: Tensor) -> bool:
    """Whether a flat table `[N, D]`, in half precision maybe, is the fixed one."""
    if table.is_meta:
        return False
    fixed = sincos_positions((len(table), 1, 1), table.shape[1]).flatten(0, 2).to(table.device)
    return torch.allclose(table.float(), fixed, rtol=0, atol=0.01)


def _grid_of(name: str, tokens: int, clip: Grid | None, patch: Grid, here: Grid) -> Grid:
    """The grid of a flat table of so many tokens: that of the known clip, or else the model's, if it has as many."""
    grid = floored(clip, patch) if clip else tuple(here)
    if math.prod(grid) == tokens:
        return grid
    of = f"clips of {clip} frames, rows, columns have {math.prod(grid)}" if clip else f"clips here have {here.numel()}"
    raise UserError(
        f"{name}: found a learned table of {tokens} tokens, but {of}; set MODEL.CHECKPOINT_CLIP to frames, rows and"
        " columns of the clips that the file was made for"
    )


def embed_patches(patches: Tensor, proj: nn.Conv3d) -> Tensor:
    """Patches `[B, N, P]` to what the convolution, whose stride is its kernel, makes of them: `[B, N, D]`."""
    return F.linear(patches, proj.weight.movedim(1, -1).flatten(1), proj.bias)


class PatchEmbed(nn.Module):
    """One linear map of every patch, with the weight of the published convolution."""

    def __init__(self, channels: int, dim: int, patch: Grid):
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, patch, patch)

    def forward(self, patches: Tensor) -> Tensor:
        """`[B, N, P]` to `[B, N, D]`."""
        return embed_patches(patches, self.proj)


class Attention(nn.Module):
    """Self-attention; queries and values have a bias, keys none."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise UserError(
                f"{heads} attention heads do not divide a width of {dim}; change NUM_HEADS or EMBED_DIM"
                " (of VideoMAE's decoder DECODER_HEADS or DECODER_DIM)"
            )
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # Three products: one would need its gradient joined, and its bias padded with zeros for the keys.
        parts = zip(self.qkv.weight.chunk(3), (self.q_bias, None, self.v_bias))
        q, k, v = (F.linear(x, *part).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, D / heads]
        return self.proj(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each on normalised tokens and with a skip path."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = Mlp(dim, hidden_width(dim, mlp_ratio), dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Blocks(nn.ModuleList):
    """Blocks in a row; drop path rises linearly from 0 in the first to `drop_path` in the last."""

    def __init__(self, dim: int, *, depth: int, heads: int, mlp_ratio: float, drop_path: float, act_checkpoint: bool):
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        super().__init__(Block(dim, heads, mlp_ratio, rate) for rate in rates)
        self.act_checkpoint = act_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if self.act_checkpoint and self.training else block(x)
        return x


@MODELS.register("ViT", node="VIT")
class ViT(nn.Module):
    """The encoder of VideoMAE with a classifier on the mean of all tokens, for fine-tuning.

    Keys:
        embed_dim: width of the tokens
        depth: number of blocks
        num_heads: attention heads of each block
        mlp_ratio: hidden width of the MLPs, as a multiple of EMBED_DIM, rounded down
        droppath_rate: drop path of the last block; it rises linearly from 0 in the first
        head_init_scale: factor on the initial weights of the classifier
    """

    def __init__(
        self,
        spec: Spec,
        *,
        embed_dim: Count = 768,
        depth: Count = 12,
        num_heads: Count = 12,
        mlp_ratio: Positive = 4.0,
        droppath_rate: Share = 0.0,
        head_init_scale: NonNegative = 1.0,
    ):
        super().__init__()
        self.patch, grid = tuple(spec.patch), token_grid(spec, spec.clip.train_size)
        self.clip = (spec.clip.channels, spec.clip.frames, spec.clip.train_size, spec.clip.train_size)
        self.patch_embed = PatchEmbed(spec.clip.channels, embed_dim, self.patch)
        self.register_buffer("positions", sincos_positions(grid, embed_dim))
        self.blocks = Blocks(
            embed_dim,
            depth=depth,
            heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_path=droppath_rate,
            act_checkpoint=spec.act_checkpoint,
        )
        self.fc_norm = nn.LayerNorm(embed_dim, EPS)
        self.head = class_head(spec, embed_dim)
        self._initialise(head_init_scale)

    def _initialise(self, head_scale: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(head_scale)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """`[B, C, T, H, W]` to raw logits `[B, classes]` and features `[B, D]`."""
        features = self.fc_norm(self._tokens(video).mean(1))
        return {**self.head(features), "features": features}

    def feature_map(self, video: Tensor) -> dict[str, Tensor]:
        """The tokens of the last block, which are not normalised: `map` `[B, T, H, W, D]`."""
        return {"map": self._tokens(video).unflatten(1, self.positions.shape[:3])}

    def _tokens(self, video: Tensor) -> Tensor:
        check_clip(self, video)
        x = self.patch_embed(self._patches(video))
        return self.blocks(x + self.positions.flatten(0, 2).type_as(x))

    def _patches(self, video: Tensor) -> Tensor:
        """All patches `[B, N, P]`."""
        frames, rows, columns = self.patch
        cells = video.unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).unflatten(2, (-1, frames))
        return cells.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)

    def resize_positions(self, weights: dict[str, Tensor], clip: Grid | None = None):
        """The weights with their position tables fit for this model's clips: see `resize_positions`."""
        return resize_positions(weights, self, clip)

    def no_weight_decay(self) -> set[str]:
        """Parts of the names of the parameters that weight decay leaves alone: none, the positions are fixed."""
        return set()

    def layer_of(self, name: str) -> int:
        """The layer of a parameter for layer-wise decay: 0 patch embedding, i + 1 block i, depth + 1 the rest."""
        if name.startswith("patch_embed."):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else len(self.blocks) + 1
