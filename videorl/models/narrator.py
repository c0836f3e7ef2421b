"""Narrator: a language model that looks at a clip before each block, LaViLa's.

Zhao et al., Learning Video Representations from Large Language Models, CVPR 2023 (facebookresearch/LaViLa), whose names
of weights these are, but for the tower, here `video`. The gated cross-attention is Flamingo's (Alayrac et al., NeurIPS
2022), the pool of queries CoCa's (Yu et al., 2022), its single head of keys and values Shazeer's (2019).
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl.models.sampling import Writer
from videorl.models.text import check_shape, pretrained, recompute
from videorl.models.timesformer import Tower, resize_inside
from videorl.registry import MODELS, Count, Share, UserError
from videorl.spec import Sampling, Spec

Seen = Sequence[tuple[Tensor, Tensor] | None]  # of each block, keys and values of the clips, if it looks at them
HEAD_WIDTH = 64  # of the attention pool
SHAPE = {  # names in the configs of transformers, and our keys
    "hidden_size": "WIDTH",
    "num_attention_heads": "HEADS",
    "num_hidden_layers": "LAYERS",
    "vocab_size": "VOCABULARY",
    "max_position_embeddings": "CONTEXT",
}


@MODELS.register("Narrator", node="NARRATOR", video="TIMESFORMER")
class Narrator(nn.Module):
    """A TimeSformer with the keys of node TIMESFORMER, learned queries that pool its tokens, and a language model of
    transformers whose blocks attend to these first.

    Texts are numbers of tokens: start, text, end, then -1 (see TEXT.TOKENIZER). Tried with GPT-2; other causal models
    need blocks in one list, which get what `forward` is given by name.

    Keys:
        video: the keys of node TIMESFORMER
        language: first weights of the language model: folder of transformers' files, or hub:NAME; empty: a random GPT-2
        width: width of its tokens
        heads: attention heads of each of its blocks
        layers: number of its blocks
        vocabulary: number of different tokens; of a random model the last one is start and end, as GPT-2's
        context: tokens that it has places for
        dropout: of a language model in training, in its blocks and in what is added to them
        cross_every: of so many blocks in a row the first looks at the clip
        gated: what a block sees is scaled by tanh of learned numbers that begin with 0
        queries: number of learned queries, the tokens that a block can look at
        freeze_language: train what looks at the clip, but not the language model; see TIMESFORMER.FREEZE for the tower
    """

    def __init__(
        self,
        spec: Spec,
        *,
        video: dict,
        language: str = "",
        width: Count = 768,
        heads: Count = 12,
        layers: Count = 12,
        vocabulary: Count = 50257,
        context: Count = 1024,
        dropout: Share = 0.1,
        cross_every: Count = 1,
        gated: bool = True,
        queries: Count = 256,
        freeze_language: bool = False,
    ):
        super().__init__()
        self.video = Tower(spec, **{name.lower(): value for name, value in video.items()})
        self.clip = self.video.clip
        shape = dict(zip(SHAPE, (width, heads, layers, vocabulary, context), strict=True))
        self.text_decoder = language_model(language, shape, dropout)
        self.text_decoder.requires_grad_(not freeze_language)
        for number, block in enumerate(blocks_of(self.text_decoder)):
            block.register_forward_pre_hook(functools.partial(_look_first, number=number), with_kwargs=True)
            if number % cross_every == 0:
                open_eyes(block, width, heads, dropout, gated=gated)
        self.img_queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.img_attn_pool = AttentionPool(width, self.video.dim, heads)
        self.img_attn_pool_norm = Norm(width)
        if spec.act_checkpoint:
            recompute(self.text_decoder)

    def forward(self, video: Tensor, text: Tensor) -> dict[str, Tensor]:
        """video `[B, C, T, H, W]`; text `[B, L]` (or `[B, 1, L]`), numbers of tokens, -1 for padding.

        Returns `token_logits` `[B, M, vocabulary]` for the tokens 1 to M of the texts: what is padding in all has none.
        """
        return {"token_logits": self.read(text, self.see(video))}

    def image_tokens(self, video: Tensor) -> Tensor:
        """What the blocks look at: `[B, C, T, H, W]` to `[B, queries, width]`."""
        queries = self.img_queries.expand(len(video), -1, -1)
        return self.img_attn_pool_norm(self.img_attn_pool(queries, self.video.tokens(video)))

    def see(self, video: Tensor) -> Seen:
        """Keys and values of the clips for each block, made once for all texts of a clip and all their tokens."""
        return self.seen(self.image_tokens(video))

    def seen(self, tokens: Tensor) -> Seen:
        """`see` for image tokens `[B, queries, width]`."""
        return [block.crossattention.seen(tokens) if looks(block) else None for block in blocks_of(self.text_decoder)]

    def read(self, text: Tensor, seen: Seen) -> Tensor:
        """`token_logits` of `forward` for clips seen before."""
        text = self._checked(text[:, 0] if text.ndim == 3 and text.shape[1] == 1 else text)
        longest = max(int((text >= 0).sum(1).max()), 2)
        return self._logits(text[:, : longest - 1].clamp(min=0), seen)

    def _checked(self, text: Tensor) -> Tensor:
        """Texts that the language model can read."""
        if text.ndim != 2:
            raise UserError(f"a narrator reads one text of each clip, found {list(text.shape)}: give it [B, L]")
        vocabulary, largest = self.text_decoder.config.vocab_size, int(text.max())
        if largest >= vocabulary or not bool((text[:, 0] == self.start).all()):
            raise UserError(
                f"NARRATOR.VOCABULARY {vocabulary}: texts begin with token {self.start} and have none above"
                f" {vocabulary - 1}, but TEXT.TOKENIZER gives {int(text[0, 0])} first and {largest}; set one to fit the"
                " other"
            )
        self.check_length(text.shape[1], "TEXT.MAX_WORDS")
        return text

    def check_length(self, tokens: int, key: str) -> None:
        """Raises `UserError` for a text of more tokens than the language model has places for."""
        places = getattr(self.text_decoder.config, "max_position_embeddings", tokens)
        if tokens > places:
            raise UserError(f"{key} {tokens}: the language model has places for {places} tokens; set it to fewer")

    def _logits(self, ids: Tensor, seen: Seen) -> Tensor:
        """`[B * R, L]`, R texts of each clip one after the other, to `[B * R, L, vocabulary]`."""
        return self.text_decoder(input_ids=ids, seen=seen, use_cache=False).logits

    @property
    def start(self) -> int:
        """Number of the token that texts begin with."""
        config = self.text_decoder.config
        return config.eos_token_id if config.bos_token_id is None else config.bos_token_id

    @property
    def end(self) -> int:
        """Number of the token that texts end with."""
        return self.text_decoder.config.eos_token_id

    def generate(self, video: Tensor, index: Tensor, sampling: Sampling, *, use_cache: bool = True):
        """Texts of the clips `[B, C, T, H, W]` with the numbers `index` `[B]`: see `write`."""
        with torch.no_grad():
            return self.write(self.see(video), index, sampling, use_cache=use_cache)

    @torch.no_grad()
    def write(self, seen: Seen, index: Tensor, sampling: Sampling, *, use_cache: bool = True) -> tuple[Tensor, Tensor]:
        """Texts of clips seen before, with the numbers `index` `[B]`.

        Returns their tokens int64 `[B, returns, max_length]`, start, text, end, then -1, and their log-likelihoods
        float32 `[B, returns]`: of all tokens after the start, under the model itself, whatever `sampling` says. What is
        drawn for a clip depends on (seed, its number) alone. `use_cache` False runs each text again for every token.
        """
        self.check_length(sampling.max_length, "MAX_LENGTH")
        first = torch.full_like(index, self.start)[:, None]
        settings = {"max_length": sampling.max_length, "use_cache": use_cache}
        if sampling.beams > 1:
            settings |= {"num_beams": sampling.beams, "num_return_sequences": sampling.returns}
            ids = self._written(first, seen, **settings, length_penalty=sampling.length_penalty)
            likely = self._log_likelihood(ids, seen)
        else:
            writer = Writer(index, sampling, self.end)
            ids = self._written(first.repeat_interleave(sampling.returns, 0), seen, writer, **settings)
            likely = writer.log_likelihood
        ids = F.pad(self._ended(ids), (0, sampling.max_length - ids.shape[1]), value=-1)
        return ids.unflatten(0, (len(index), -1)), likely.unflatten(0, (len(index), -1))

    def _written(self, first: Tensor, seen: Seen, *writers: Writer, **settings) -> Tensor:
        """Texts `[N, L]` that begin with the tokens `first` `[N, 1]`."""
        from transformers import GenerationConfig

        marks = {"bos_token_id": self.start, "eos_token_id": self.end, "pad_token_id": self.end}
        config = GenerationConfig(do_sample=False, **marks, **settings)
        inputs = {"attention_mask": torch.ones_like(first), "seen": seen}
        return self.text_decoder.generate(first, generation_config=config, logits_processor=list(writers), **inputs)

    def _ended(self, ids: Tensor) -> Tensor:
        """With -1 after the first end of each text `[N, L]`."""
        ended = (ids[:, 1:] == self.end).cumsum(1)
        return ids.masked_fill(F.pad(ended, (2, -1)) > 0, -1) if ids.shape[1] > 1 else ids

    def _log_likelihood(self, ids: Tensor, seen: Seen) -> Tensor:
        """Of texts `[B * R, L]` in float32 `[B * R]`."""
        targets = self._ended(ids)[:, 1:]
        logits = self._logits(ids[:, :-1], seen).float()
        return -F.cross_entropy(logits.mT, targets, ignore_index=-1, reduction="none").sum(1)

    def resize_positions(self, weights: dict[str, Tensor], clip=None) -> tuple[dict[str, Tensor], list[str], list[str]]:
        """The weights with position tables of other clips resized, the names of these, and none made new."""
        return resize_inside(self.video, "video.", weights)

    def afresh(self, names: set[str]) -> tuple[str, ...]:
        """What a file of a video model without language model, such as a dual encoder, leaves to the first values."""
        return () if "img_queries" in names else ("text_decoder.", "img_")

    def no_weight_decay(self) -> set[str]:
        """Parts of the names of the parameters that weight decay leaves alone."""
        return self.video.no_weight_decay()


# ----------------------------------------------------------------------------------------------- what looks at the clip


class Norm(nn.Module):
    """Layer norm without bias."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma)


class AttentionPool(nn.Module):
    """What queries `[B, Q, D]` find in tokens `[B, N, C]`: all heads share one set of keys and values."""

    def __init__(self, dim: int, context_dim: int, heads: int, head_width: int = HEAD_WIDTH):
        super().__init__()
        self.heads = heads
        self.norm, self.context_norm = Norm(dim), Norm(context_dim)
        self.to_q = nn.Linear(dim, heads * head_width, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, dim, bias=False)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        key, value = self.to_kv(self.context_norm(tokens)).chunk(2, -1)  # [B, N, c]
        # With the same keys for all, the heads of a query are so many queries.
        query = self.to_q(self.norm(queries)).unflatten(-1, (self.heads, -1)).flatten(1, 2)  # [B, Q * heads, c]
        found = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(found.unflatten(1, (-1, self.heads)).flatten(2))


class Linear(nn.Module):
    """With GPT-2's first values and weight, which is `[in, out]`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


class CrossAttention(nn.Module):
    """Tokens of R texts of each clip attend to what is seen of the clip."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn, self.q_attn, self.c_proj = Linear(dim, 2 * dim), Linear(dim, dim), Linear(dim, dim)

    def seen(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, heads, Q, C]` of `[B, Q, D]`."""
        return tuple(x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.c_attn(tokens).chunk(2, -1))

    def forward(self, x: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
        """`[B * R, L, D]` to the same."""
        key, value = seen
        # The texts of a clip are one row of queries: its keys are never copied for each.
        query = self.q_attn(x).reshape(len(key), -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)  # [B, heads, R * L, C]
        return F.dropout(self.c_proj(found.transpose(1, 2).reshape(x.shape)), dropout)


class SquaredReluMlp(nn.Module):
    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.c_fc, self.c_proj, self.dropout = Linear(dim, 4 * dim), Linear(4 * dim, dim), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.relu(self.c_fc(x)).square()))


def open_eyes(block: nn.Module, dim: int, heads: int, dropout: float, *, gated: bool) -> None:
    """Gives a stock block what it looks with, under the published names."""
    block.ln_cross_attn, block.crossattention = nn.LayerNorm(dim), CrossAttention(dim, heads, dropout)
    block.ln_2_crossattention, block.mlp_crossattention = nn.LayerNorm(dim), SquaredReluMlp(dim, dropout)
    for name in ("alpha_cattn", "alpha_dense") if gated else ():
        block.register_parameter(name, nn.Parameter(torch.zeros(())))


def looks(block: nn.Module) -> bool:
    return hasattr(block, "mlp_crossattention")


def _look_first(block: nn.Module, args: tuple, kwargs: dict, *, number: int) -> tuple[tuple, dict]:
    """Before block `number`, on its input `[B * R, L, D]`: cross-attention and an MLP, as far as their gates are open.

    A stock block knows nothing of `seen`, which ends here.
    """
    if "seen" not in kwargs or not args:
        raise UserError(
            f"NARRATOR.LANGUAGE: blocks of kind {type(block).__name__} do not get what the model is given by name, so"
            " they cannot look at clips; take another model, such as GPT-2"
        )
    x, *others = args
    others_by_name = {name: value for name, value in kwargs.items() if name != "seen"}
    if looks(block):
        attended = block.crossattention(block.ln_cross_attn(x), kwargs["seen"][number])
        x = x + _opened(block, "alpha_cattn", attended)
        x = x + _opened(block, "alpha_dense", block.mlp_crossattention(block.ln_2_crossattention(x)))
    return (x, *others), others_by_name


def _opened(block: nn.Module, gate: str, x: Tensor) -> Tensor:
    return getattr(block, gate).tanh() * x if hasattr(block, gate) else x


# ------------------------------------------------------------------------------------------------- the language model


class Seeing:
    """Lets transformers' `generate` hand `seen` on to the blocks."""

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args, seen: Seen | None = None, **kwargs) -> dict:
        return {**super().prepare_inputs_for_generation(input_ids, *args, **kwargs), "seen": seen}


def language_model(source: str, shape: dict[str, int], dropout: float) -> nn.Module:
    """A stock causal language model: that of a folder or the hub, which must have the shape, or a random GPT-2."""
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise UserError("a narrator needs transformers, which is not here: pip install 'videorl[text]'") from None
    if source:
        model = pretrained(AutoModelForCausalLM, source, "NARRATOR.LANGUAGE", "gpt2")
        check_shape(model.config, shape, SHAPE, "NARRATOR", source)
    else:
        last = shape["vocab_size"] - 1
        model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=last, eos_token_id=last))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    model.generation_config = GenerationConfig()  # nothing of a folder's own habits
    model.__class__ = type(type(model).__name__, (Seeing, type(model)), {})
    return model


def blocks_of(language: nn.Module) -> nn.ModuleList:
    """The list of the blocks of a model of transformers."""
    count = language.config.num_hidden_layers
    lists = [module for module in language.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise UserError(
            f"NARRATOR.LANGUAGE: found no list of {count} blocks in {type(language).__name__}; take another model, such"
            " as GPT-2"
        )
    return lists[0]
