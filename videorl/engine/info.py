"""Parameters and multiply-adds of a model, by part."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videorl import config, log
from videorl.clip.masks import lengths, token_grid
from videorl.registry import MODELS, UserError
from videorl.spec import Spec

LAYER_NORM = torch.ops.aten.native_layer_norm
LAYER_NORM_COST = 5  # of an element, by fvcore's rule

COUNTED = (
    "Counted: the multiply-adds of convolutions, linear layers and products of matrices, attention (queries by keys,"
    " weights by values) among them, of one forward pass in evaluation; a training step does about three times as many."
    " Norms, softmax, activations and positions are not counted, nor are buffers as parameters."
)

PEAKS = {"H100": 989.5, "H200": 989.5, "H800": 989.5, "A100": 312.0}  # 10^12 operations a second, dense bfloat16, SXM
KNOWN_PEAKS = ", ".join(f"{name} {value:g}" for name, value in PEAKS.items())


@dataclass(frozen=True)
class Part:
    """A module: its parameters and multiply-adds, those of the modules inside included. The model's own name is ''."""

    name: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Info:
    """What `model_info` finds: the model itself comes first in `parts`, every module before those inside it.

    `norms`: what fvcore adds for layer norms. `hidden`: what embedding the tokens would cost that a masked model never
    reads.
    """

    model: str
    inputs: dict[str, tuple[int, ...]]
    parts: list[Part]
    norms: int
    hidden: int

    @property
    def published(self) -> int:
        """Multiply-adds as the published tables of masked models count them (fvcore, all tokens embedded)."""
        return self.parts[0].macs + self.norms + self.hidden


def model_info(cfg, depth: int = 1) -> Info:
    """Counts one clip of the training size, and one caption where the model reads text, to `depth` levels of modules.

    Counted on the meta device, where nothing is computed, so that a giant costs no memory either.
    """
    entry, values = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    spec = config.spec(cfg)
    with torch.device("meta"):
        model = entry(spec, values=values).to("meta").eval()
        inputs = _inputs(cfg, spec, model)
    counter = FlopCounterMode(display=False, custom_mapping={LAYER_NORM: _layer_norm})
    # The plain form of attention is products of matrices, whose counts do not depend on torch's choice of kernels.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(**inputs)
    counts, root = counter.get_flop_counts(), type(model).__name__
    found = {name.removeprefix(root).removeprefix("."): ops for name, ops in counts.items()}
    modules = {n: m for n, m in model.named_modules() if n.count(".") + bool(n) <= depth}
    parts = [Part(name, _parameters(module), _macs(name, module, found)) for name, module in modules.items()]
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    return Info(entry.name, shapes, parts, found[""].get(LAYER_NORM, 0), _hidden(model, inputs, spec))


def _inputs(cfg, spec: Spec, model: nn.Module) -> dict[str, Tensor]:
    """What the model's `forward` names, for one clip."""
    clip, size = spec.clip, spec.clip.train_size
    makers = {
        "video": lambda: torch.empty(1, clip.channels, clip.frames, size, size),
        "pixels": lambda: torch.empty(1, clip.frames, clip.channels, size, size, dtype=torch.uint8),
        "visible": lambda: torch.empty(1, lengths(spec)[0], dtype=torch.int64),
        "masked": lambda: torch.empty(1, lengths(spec)[1], dtype=torch.int64),
        "text": lambda: torch.empty(1, 1, cfg.TEXT.MAX_WORDS, dtype=torch.int64),
    }
    names = inspect.signature(model.forward).parameters
    if unknown := [n for n, p in names.items() if n not in makers and p.default is inspect.Parameter.empty]:
        raise UserError(f"{cfg.MODEL.MODEL_NAME} reads {', '.join(unknown)}; only {', '.join(makers)} can be counted")
    return {name: makers[name]() for name in names if name in makers}


def _layer_norm(shape, *_args, **_kwargs) -> int:
    return LAYER_NORM_COST * torch.Size(shape).numel()


def _macs(name: str, module: nn.Module, found: Mapping[str, Mapping]) -> int:
    if name in found:
        return sum(flops for op, flops in found[name].items() if op is not LAYER_NORM) // 2
    # A list of modules is never called itself.
    return sum(_macs(f"{name}.{child}".removeprefix("."), inner, found) for child, inner in module.named_children())


def _hidden(model: nn.Module, inputs: Mapping[str, Tensor], spec: Spec) -> int:
    """Multiply-adds of embedding the tokens that a masked model does not read."""
    if "visible" not in inputs:
        return 0
    tokens = math.prod(token_grid(spec, spec.clip.train_size))
    kernels = [p.numel() for name, p in model.named_parameters() if name.endswith("patch_embed.proj.weight")]
    return (tokens - inputs["visible"].shape[1]) * sum(kernels)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def table(info: Info) -> str:
    """The parts as lines: name, parameters, multiply-adds in G and as a share of the whole."""
    rows = [("", "parameters", "multiply-adds", "share")]
    for part in info.parts:
        level = part.name.count(".") + bool(part.name)
        name = "  " * level + (part.name.rpartition(".")[2] or info.model)
        share = part.macs / max(1, info.parts[0].macs)
        rows.append((name, f"{part.parameters:,}", f"{part.macs / 1e9:.6f} G", f"{100 * share:.1f} %"))
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        f"{name:{width}}  {count:>14}  {macs:>15}  {share:>7}".rstrip() for name, count, macs, share in rows
    )


def published_text(info: Info) -> str:
    """The figure by the rule of published tables, and how it comes about."""
    text = (
        f"By the rule of fvcore, which published tables of ViT and VideoMAE follow: {info.published / 1e9:.6f} G ="
        f" the above + {info.norms / 1e9:.6f} G for layer norms ({LAYER_NORM_COST} per element)"
    )
    if info.hidden:
        text += (
            f" + {info.hidden / 1e9:.6f} G for embedding the hidden tokens: published models embed all tokens and drop"
            " those that are hidden, ours embeds the visible ones alone"
        )
    return f"{text}."


def log_model_info(cfg) -> None:
    """Logs the table; of a model that cannot be run on the meta device, why there is none."""
    try:
        info = model_info(cfg)
    except Exception as error:  # whatever a model does there: training it does not hang on this
        name, reason = cfg.MODEL.MODEL_NAME, f"{type(error).__name__}: {error}".partition("\n")[0]
        log.log.warning("LOG_MODEL_INFO: %s cannot be counted without weights (%s)", name, reason)
        return
    log.table("one clip, forward:", f"{table(info)}\n{published_text(info)}")


def peak(device: str) -> float:
    """10^12 operations a second of a GPU of that name; 0 where it is not known."""
    return next((value for name, value in PEAKS.items() if name in device), 0.0)


def mfu(macs: float, clips_per_second: float, peak: float) -> float:
    """Part of `peak` that training uses, where a step takes three times the operations of a forward pass of `macs`."""
    return 3 * 2 * macs * clips_per_second / (1e12 * peak)
