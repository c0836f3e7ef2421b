"""VideoMAE: an encoder of the few visible patches of a clip and a small decoder that predicts the pixels of the others.

Tong et al., VideoMAE, NeurIPS 2022; Wang et al., VideoMAE V2, CVPR 2023 (masks for the decoder too); reference code:
MCG-NJU/VideoMAE, OpenGVLab/VideoMAEv2, whose names of weights these are.
"""

import torch
from torch import Tensor, nn

from videorl.clip.masks import token_grid
from videorl.metrics.pixels import Targets, normalised, patches
from videorl.models.clips import check_clip
from videorl.models.mvit import EPS, Grid
from videorl.models.vit import Blocks, PatchEmbed, resize_positions, sincos_positions
from videorl.registry import MODELS, Count, Positive, Share, UserError, Whole
from videorl.spec import Spec


class Encoder(nn.Module):
    """A ViT of the visible patches alone."""

    def __init__(self, spec: Spec, dim: int, **blocks):
        super().__init__()
        self.patch_embed = PatchEmbed(spec.clip.channels, dim, spec.patch)
        self.register_buffer("positions", sincos_positions(token_grid(spec, spec.clip.train_size), dim))
        self.blocks = Blocks(dim, **blocks)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Patches `[B, V, P]` and the numbers of their tokens `[B, V]` to `[B, V, D]`."""
        x = self.patch_embed(patches)
        x = x + self.positions.flatten(0, 2)[visible].type_as(x)
        return self.norm(self.blocks(x))


class Decoder(nn.Module):
    """A narrow ViT of the encoded and the masked tokens, and a linear map to the pixels of the latter."""

    def __init__(self, spec: Spec, dim: int, **blocks):
        super().__init__()
        self.register_buffer("positions", sincos_positions(token_grid(spec, spec.clip.train_size), dim))
        self.blocks = Blocks(dim, **blocks)
        self.norm = nn.LayerNorm(dim, EPS)
        self.head = nn.Linear(dim, Targets.of(spec).size)

    def forward(self, encoded: Tensor, mask_token: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Tokens `[B, V, D]`, the one for all masked `[1, 1, D]`, and both their numbers, to pixels `[B, M, P]`."""
        positions = self.positions.flatten(0, 2)
        hidden = mask_token + positions[masked]
        x = torch.cat([encoded + positions[visible].type_as(encoded), hidden.type_as(encoded)], dim=1)
        return self.head(self.norm(self.blocks(x)[:, visible.shape[1] :]))


def check_masking(spec: Spec, model: str, tuned: str) -> None:
    """Raises `UserError` for a masked autoencoder without masks. `tuned`: the model that fine-tunes its encoder."""
    if spec.masking.ratio <= 0:
        raise UserError(
            f"{model} predicts hidden tokens, found MASK.RATIO 0: set MASK.RATIO (published: 0.9);"
            f" to fine-tune use MODEL.MODEL_NAME {tuned}"
        )


@MODELS.register("VideoMAE", node="VIDEOMAE")
class VideoMAE(nn.Module):
    """The masked autoencoder for pre-training; `ViT` fine-tunes its encoder.

    Keys:
        embed_dim: width of the encoder's tokens
        depth: number of its blocks
        num_heads: attention heads of each of its blocks
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width, rounded down
        droppath_rate: drop path of the last block of encoder and decoder; it rises linearly from 0 in their first
        decoder_dim: width of the decoder's tokens
        decoder_depth: number of its blocks
        decoder_heads: attention heads of each of its blocks
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
        decoder_dim: Count = 384,
        decoder_depth: Whole = 4,
        decoder_heads: Count = 6,
    ):
        super().__init__()
        check_masking(spec, "VideoMAE", "ViT")
        clip, self.patch = spec.clip, tuple(spec.patch)
        self.clip = (clip.frames, clip.channels, clip.train_size, clip.train_size)
        self.register_buffer("mean", torch.tensor(clip.mean), persistent=False)
        self.register_buffer("std", torch.tensor(clip.std), persistent=False)
        blocks = {"mlp_ratio": mlp_ratio, "drop_path": droppath_rate, "act_checkpoint": spec.act_checkpoint}
        self.encoder = Encoder(spec, embed_dim, depth=depth, heads=num_heads, **blocks)
        self.encoder_to_decoder = nn.Linear(embed_dim, decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder = Decoder(spec, decoder_dim, depth=decoder_depth, heads=decoder_heads, **blocks)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """Clips `[B, T, C, H, W]` in 0..255 and token numbers `[B, V]`, `[B, M]` to the latter's pixels `[B, M, P]`."""
        check_clip(self, pixels, "TCHW")
        seen = normalised(patches(pixels, visible, self.patch), self.mean, self.std)
        encoded = self.encoder_to_decoder(self.encoder(seen, visible))
        return {"predicted": self.decoder(encoded, self.mask_token, visible, masked)}

    def resize_positions(self, weights: dict[str, Tensor], clip: Grid | None = None):
        """The weights with their position tables fit for this model's clips: see `resize_positions`."""
        return resize_positions(weights, self, clip)

    def no_weight_decay(self) -> set[str]:
        """Parts of the names of the parameters that weight decay leaves alone."""
        return {"mask_token"}
