"""Text transformers from well-kept libraries: CLIP's from open_clip, DistilBERT from transformers.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021; Sanh et al., DistilBERT,
2019. Names of weights below `model.` are those of the libraries, which are the published ones. A tower maps numbers of
tokens `[B, L]`, 0 for padding, to features `[B, width]`; `length` is that of the longest text.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from videorl.registry import UserError
from videorl.spec import HUB, Spec

SHAPE = {"dim": "TEXT_WIDTH", "n_heads": "TEXT_HEADS", "n_layers": "TEXT_LAYERS", "vocab_size": "TEXT_VOCABULARY"}


class Clip(nn.Module):
    """Causal; the feature of a text is that of the largest of its numbers, the end mark."""

    def __init__(self, spec: Spec, *, width: int, heads: int, layers: int, mlp_ratio: float, vocabulary: int,
                 activation: str):  # fmt: skip
        super().__init__()
        try:
            from open_clip.transformer import QuickGELU, TextTransformer
        except ImportError:
            raise UserError("DUAL.TEXT clip needs open_clip, which is not here; pip install 'videorl[text]'") from None
        self.width, self.length = width, spec.text.length
        self.model = TextTransformer(
            context_length=self.length,
            vocab_size=vocabulary,
            width=width,
            heads=heads,
            layers=layers,
            mlp_ratio=mlp_ratio,
            output_dim=None,
            act_layer={"gelu": nn.GELU, "quick_gelu": QuickGELU}[activation],
        )
        self.model.set_grad_checkpointing(spec.act_checkpoint)

    def forward(self, text: Tensor) -> Tensor:
        model, length = self.model, text.shape[1]
        x = model.token_embedding(text) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        return x[torch.arange(len(x), device=x.device), text.argmax(1)]


class DistilBert(nn.Module):
    """The feature of a text is that of its first token, [CLS]; padding is not attended to."""

    def __init__(self, spec: Spec, weights: str, *, width: int, heads: int, layers: int, mlp_ratio: float,
                 vocabulary: int):  # fmt: skip
        super().__init__()
        try:
            from transformers import DistilBertConfig, DistilBertModel
        except ImportError:
            raise UserError(
                "DUAL.TEXT distilbert needs transformers, which is not here; pip install 'videorl[text]'"
            ) from None
        shape = {"dim": width, "n_heads": heads, "n_layers": layers, "hidden_dim": int(width * mlp_ratio)}
        shape |= {"vocab_size": vocabulary}
        if weights:
            self.model = pretrained(DistilBertModel, weights, "DUAL.TEXT_WEIGHTS", "distilbert-base-uncased")
            check_shape(self.model.config, shape, SHAPE, "DUAL", weights)
        else:
            self.model = DistilBertModel(DistilBertConfig(**shape))
        self.width, self.length = width, self.model.config.max_position_embeddings
        if spec.act_checkpoint:
            recompute(self.model)

    def forward(self, text: Tensor) -> Tensor:
        return self.model(text, attention_mask=text != 0).last_hidden_state[:, 0]


def recompute(model: nn.Module) -> None:
    """Lets a model of transformers compute activations again in the backward pass instead of keeping them."""
    older = model.gradient_checkpointing_enable  # its name in the first versions of transformers 5
    getattr(model, "activation_checkpointing_enable", older)({"use_reentrant": False})


def pretrained(kind, source: str, key: str, example: str, dtype: str = "float32") -> nn.Module:
    """Weights from a folder, without a look at the network, or from the hub; safetensors alone.

    `dtype` auto: in the type that they are stored in.
    """
    if not source.startswith(HUB) and not Path(source).is_dir():
        raise UserError(
            f"{key} {source} is no folder; expected one with config.json and model.safetensors, or a name on the"
            f" Hugging Face hub, such as {HUB}{example}"
        )
    try:
        name, local = source.removeprefix(HUB), not source.startswith(HUB)
        return kind.from_pretrained(name, local_files_only=local, use_safetensors=True, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:150]
        raise UserError(f"{key} {source} cannot be read: {reason}") from None


def check_shape(found, shape: dict[str, int], keys: dict[str, str], node: str, source: str) -> None:
    """Raises `UserError` where the config of a source has another `shape` than the keys of the node say."""
    for name, key in keys.items():
        if (size := getattr(found, name)) != shape[name]:
            raise UserError(f"{source} has {name} {size}, {node}.{key} says {shape[name]}: set {size}")
