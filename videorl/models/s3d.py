"""S3D-G with a word2vec text tower: the two towers of MIL-NCE.

Xie et al., Rethinking Spatiotemporal Feature Learning, ECCV 2018; Miech et al., End-to-End Learning of Visual
Representations from Uncurated Instructional Videos, CVPR 2020; reference code: antoine77340/MIL-NCE_HowTo100M and its
release for inference, antoine77340/S3D_HowTo100M. State-dict names are theirs, so their files load by name.

The published weights want RGB in 0..1 as it is: DATA.MEAN [0, 0, 0], DATA.STD [1, 1, 1].
"""

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videorl.models.clips import check_pixels
from videorl.models.word2vec import TextTower, word_table
from videorl.registry import MODELS, Count, Positive, UserError
from videorl.spec import Spec

Size = tuple[int, int, int]

# Channels of each inception block: branch 0; branch 1 inside and out; branch 2 inside and out; branch 3.
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
# Kernel and stride of the max pooling in front of some parts.
POOLS = {
    "conv_2b": ((1, 3, 3), (1, 2, 2)),
    "mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU; a second kernel makes that twice (space, then time)."""

    def __init__(self, channels: int, out: int, *kernels: Size, stride: Size = (1, 1, 1), padding: Size | None = None):
        super().__init__()
        for i, kernel in enumerate(kernels, 1):
            pad = padding or tuple(size // 2 for size in kernel)
            self.add_module(f"conv{i}", nn.Conv3d(channels, out, kernel, stride, pad, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm3d(out))
            channels = out
        self.separable = len(kernels) == 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(x))) if self.separable else x


class SelfGating(nn.Module):
    """Scales each channel by what the mean of all channels over time and space says."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3, 4))).sigmoid()[:, :, None, None, None]


class Mixed(nn.Module):
    """The inception block: four branches, each gated, side by side as channels."""

    def __init__(self, channels: int, b0: int, b1_inner: int, b1: int, b2_inner: int, b2: int, b3: int):
        super().__init__()
        point, space, time = (1, 1, 1), (1, 3, 3), (3, 1, 1)
        self.conv_b0 = ConvBlock(channels, b0, point)
        self.conv_b1_a = ConvBlock(channels, b1_inner, point)
        self.conv_b1_b = ConvBlock(b1_inner, b1, space, time)
        self.conv_b2_a = ConvBlock(channels, b2_inner, point)
        self.conv_b2_b = ConvBlock(b2_inner, b2, space, time)
        self.conv_b3_b = ConvBlock(channels, b3, point)
        self.gating_b0, self.gating_b1, self.gating_b2, self.gating_b3 = (SelfGating(out) for out in (b0, b1, b2, b3))

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.gating_b0(self.conv_b0(x)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(x))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(x))),
            self.gating_b3(self.conv_b3_b(F.max_pool3d(x, 3, 1, 1))),
        ]
        return torch.cat(branches, dim=1)


def scaled(channels: Sequence[int], width: float) -> list[int]:
    """Channel counts times `width`, at least 1 each."""
    return [max(1, round(width * count)) for count in channels]


def recomputed(part: nn.Module, x: Tensor) -> Tensor:
    """`part(x)`, with the activations inside computed again in the backward pass instead of kept."""

    def contexts():
        return contextlib.nullcontext(), still_statistics(part)

    return checkpoint(part, x, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def still_statistics(part: nn.Module):
    """Batch norms do not move their running statistics: the first forward pass did."""
    norms = [module for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def max_pool(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Max pooling as published: zeros at the end for kernel - stride, then sizes round up.

    With even sizes and no values below zero (all of S3D's maps) the zeros never show: rounding up alone gives the same.
    """
    odd = [size % 2 if step > 1 else 0 for size, step in zip(x.shape[2:], stride)]
    if any(odd):
        x = F.pad(x, (0, odd[2], 0, odd[1], 0, odd[0]))
    return F.max_pool3d(x, kernel, stride, ceil_mode=True)


def space_to_depth(video: Tensor) -> Tensor:
    """`[B, C, T, H, W]` to `[B, 8 C, T/2, H/2, W/2]`; order of the new channels: time, row, column, C."""
    if any(size % 2 for size in video.shape[2:]):
        raise UserError(f"S3D.SPACE_TO_DEPTH needs even frames, rows and columns, found {tuple(video.shape[2:])}")
    blocks = video.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, T/2, 2, H/2, 2, W/2, 2]
    return blocks.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4)


@MODELS.register("S3D", node="S3D", word2vec="TEXT.WORD2VEC", dictionary="TEXT.DICT")
class S3D(nn.Module):
    """S3D-G over video, word2vec over captions, both embedded in one space; neither embedding is normalised.

    Any clip shape will do; with `space_to_depth` frames, rows and columns must be even.

    Keys:
        embed_dim: size D of the joint embedding
        width: factor of all channel counts; 1.0 is the published network, with 1024 features
        space_to_depth: stem of the released weights (s3d_howto100m.pth): 2 x 2 x 2 pixels become channels first
        weight_init: of convolutions: uniform (torch's) | kaiming_normal
        word2vec: file of the word vectors (word2vec.pth); empty: random until a checkpoint brings its own
        dictionary: file of the words by number (dict.npy), to compare with the table; empty: not compared
        vocabulary: words of the table, padding included, where no file of word vectors is named
        freeze_words: leave the word vectors as they are
    """

    def __init__(
        self,
        spec: Spec,
        *,
        embed_dim: Count = 512,
        width: Positive = 1.0,
        space_to_depth: bool = False,
        weight_init: str = "uniform",
        word2vec: str = "",
        dictionary: str = "",
        vocabulary: Count = 66250,
        freeze_words: bool = True,
    ):
        super().__init__()
        self.space_to_depth, self.act_checkpoint = space_to_depth, spec.act_checkpoint
        stem, channels = scaled((64, 192), width)
        if space_to_depth:
            self.conv1 = ConvBlock(8 * spec.clip.channels, stem, (2, 4, 4), padding=(1, 2, 2))
        else:
            self.conv1 = ConvBlock(spec.clip.channels, stem, (3, 7, 7), stride=(2, 2, 2))
        self.conv_2b = ConvBlock(stem, stem, (1, 1, 1))
        self.conv_2c = ConvBlock(stem, channels, (1, 3, 3), (3, 1, 1))
        self.gating = SelfGating(channels)
        for name, published in MIXED.items():
            widths = scaled(published, width)
            self.add_module(f"mixed_{name}", Mixed(channels, *widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.fc = nn.Linear(channels, embed_dim)
        self.text_module = TextTower(word_table(word2vec, vocabulary, dictionary), embed_dim, freeze=freeze_words)
        self._initialise(weight_init)
        self.to(memory_format=torch.channels_last_3d)

    def _initialise(self, how: str) -> None:
        if how not in ("uniform", "kaiming_normal"):
            raise UserError(f"S3D.WEIGHT_INIT {how!r}: expected uniform or kaiming_normal")
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and how == "kaiming_normal":
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, video: Tensor, text: Tensor | None = None) -> dict[str, Tensor]:
        """video `[B, 3, T, H, W]` in 0..1; text `[B, K, L]` or `[B, L]` (K = 1), word numbers, 0 for padding.

        Returns `video_embed` `[B, D]`, `features` `[B, 1024 * width]` and, with text, `text_embed` `[B, K, D]`.
        """
        features = self.features(video)
        found = {"video_embed": self.fc(features), "features": features}
        if text is not None:
            found["text_embed"] = self.text_module(text if text.ndim == 3 else text[:, None])
        return found

    def features(self, video: Tensor) -> Tensor:
        """`[B, 3, T, H, W]` to the mean of the last block over time and space (mixed_5c), `[B, 1024 * width]`."""
        return self.last_block(video).mean((2, 3, 4))

    def feature_map(self, video: Tensor) -> dict[str, Tensor]:
        """The last block as `map` `[B, T, H, W, 1024 * width]`."""
        return {"map": self.last_block(video).permute(0, 2, 3, 4, 1)}

    def last_block(self, video: Tensor) -> Tensor:
        """`[B, 3, T, H, W]` to mixed_5c, `[B, 1024 * width, T', H', W']`."""
        check_pixels(self, video)
        x = self.stem(video)
        for name in ("conv_2b", "conv_2c", "gating", *(f"mixed_{name}" for name in MIXED)):
            if name in POOLS:
                x = max_pool(x, *POOLS[name])
            part = self.get_submodule(name)
            x = recomputed(part, x) if self.act_checkpoint and self.training else part(x)
        return x

    def stem(self, video: Tensor) -> Tensor:
        if not self.space_to_depth:
            return self.conv1(video.contiguous(memory_format=torch.channels_last_3d))
        x = self.conv1(space_to_depth(video).contiguous(memory_format=torch.channels_last_3d))
        # An even kernel, padded alike on both sides, gives one place too many.
        return x[:, :, 1:, 1:, 1:]
