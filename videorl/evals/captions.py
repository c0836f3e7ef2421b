"""What a narrator says of clips: how well it foresees the narrations of people, and how its own compare with them."""

import importlib.util
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F

from videorl.evals.views import check_unmasked
from videorl.metrics import HIGHER, LOWER, captions
from videorl.registry import EVALS, Count, NonNegative, Range, UserError, Whole
from videorl.spec import Sampling

log = logging.getLogger("videorl")

SCORES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider", "meteor")


@EVALS.register("captions")
class Captions:
    """Captions as in facebookresearch/LaViLa (eval_narrator.py), of a model that `generate`s, on a data set whose
    `texts(i)` are the references of a sample and whose `tokenize` can `decode`.

    Metrics: `perplexity` of a token of the reference that the data set gives, given the clip and the tokens before it,
    the end included; `perplexity_clip`, the mean of the perplexities of clips, which LaViLa prints; of the likeliest of
    the generated texts `bleu1` to `bleu4`, `rouge_l`, `meteor` (0..1) and `cider` (0..10), of words split at spaces,
    which see upper case; the same with `_bert`, and `match_…`, where the keys below ask for them. METEOR needs Java and
    is left out, which is said, where that is missing. Saved of each clip: texts, references, log-likelihoods, scores.

    Keys:
        max_length: tokens of a generated text, with start and end
        returns: texts generated of a clip; the likeliest is judged, all are saved
        temperature: logits are divided by it before a token is drawn; 0: always the likeliest token
        top_p: tokens are drawn from the likeliest that have this probability together; 1: from all
        top_k: tokens are drawn from so many likeliest ones; 0: from all
        beams: width of a beam search, which draws nothing; 1: none
        length_penalty: of a beam search: how much longer texts are preferred
        seed: of what is drawn: texts depend on it and on the number of the clip
        bert_vocabulary: vocab.txt of BERT-uncased: scores also of texts in its lower-case word pieces, as published
        facts: JSON file, kind of fact to word to what it means: `match_KIND` is the share of texts that say of a kind
            what a reference says, `match_all` that of those that do of all kinds
    """

    metrics = {
        **dict.fromkeys(("perplexity", "perplexity_clip"), LOWER),
        **{f"{name}{ending}": HIGHER for ending in ("", "_bert") for name in SCORES},
        "match_*": HIGHER,
    }

    def __init__(
        self,
        spec,
        *,
        max_length: Annotated[int, Range(">= 2")] = 77,
        returns: Count = 1,
        temperature: NonNegative = 0.7,
        top_p: Annotated[float, Range("> 0, <= 1")] = 0.95,
        top_k: Whole = 0,
        beams: Count = 1,
        length_penalty: NonNegative = 1.0,
        seed: Whole = 0,
        bert_vocabulary: str = "",
        facts: str = "",
    ):
        check_unmasked(spec, "captions")
        if importlib.util.find_spec("sacrebleu") is None:
            raise UserError("captions needs sacrebleu, which is not here: pip install 'videorl[text]'")
        if spec.views.clips * spec.views.crops > 1:
            raise UserError("captions takes one view of a clip: set CLIPS and CROPS of the evaluation to 1")
        if beams > 1 and returns > beams:
            raise UserError(
                f"RETURNS {returns}: a search with BEAMS {beams} gives no more texts; set it to {beams} or less"
            )
        self.sampling = Sampling(max_length, returns, temperature, top_p, top_k, beams, length_penalty, seed)
        self.normalised = bert_text(bert_vocabulary) if bert_vocabulary else None
        self.facts = _read_facts(facts) if facts else {}

    @property
    def protocol(self) -> str:
        s = self.sampling
        top_k = f", top-k {s.top_k}" if s.top_k else ""
        how = f"temperature {s.temperature:g}, top-p {s.top_p:g}{top_k}, seed {s.seed}"
        if s.beams > 1:
            how = f"{s.beams} beams, length penalty {s.length_penalty:g}"
        elif s.temperature == 0:
            how = "the likeliest tokens"
        of = f"the likeliest of {s.returns} texts" if s.returns > 1 else "one text"
        return f"captions: {of} of up to {s.max_length} tokens, {how}"

    def begin(self, model, dataset) -> None:
        if not hasattr(model, "generate"):
            raise UserError(f"captions: {type(model).__name__} writes no texts; expected a narrator")
        if not hasattr(dataset, "texts") or not hasattr(dataset.tokenize, "decode"):
            raise UserError(
                "captions: expected a data set with texts, such as ego4d, and a TEXT.TOKENIZER of a language model"
            )
        self.dataset = dataset

    def step(self, model, batch) -> dict[str, torch.Tensor]:
        """Rows of one batch: index, nats and tokens of the reference, ids [B, R, L] and log_likelihood [B, R]."""
        text = batch["text"]
        seen = model.see(batch["video"])
        logits = model.read(text, seen).float()
        following = text[:, 1 : logits.shape[1] + 1]
        nats = F.cross_entropy(logits.mT, following, ignore_index=-1, reduction="none").sum(1)
        ids, likely = model.write(seen, batch["index"], self.sampling)
        tokens = (following >= 0).sum(1)
        return {"index": batch["index"], "nats": nats, "tokens": tokens, "ids": ids, "log_likelihood": likely}

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and of each clip its texts [N, R] and scores."""
        decode = self.dataset.tokenize.decode
        texts = [[decode(ids) for ids in clip] for clip in rows["ids"].tolist()]
        references = [list(self.dataset.texts(int(index))) for index in rows["index"]]
        judged = [clip[best] for clip, best in zip(texts, rows["log_likelihood"].argmax(1), strict=True)]
        of_clips = rows["nats"] / np.maximum(rows["tokens"], 1)
        metrics = {"perplexity": _exp(rows["nats"].sum() / max(rows["tokens"].sum(), 1))}
        metrics["perplexity_clip"] = float(np.mean([_exp(nats) for nats in of_clips]))
        found, each = scores(judged, references)
        metrics |= found
        if self.normalised:
            plain = [self.normalised(text) for text in judged], [[*map(self.normalised, clip)] for clip in references]
            metrics |= {f"{name}_bert": value for name, value in scores(*plain)[0].items()}
        matches = self._matches(judged, references)
        metrics |= {name: float(values.mean()) for name, values in matches.items()}
        saved = {"index": rows["index"], "texts": np.array(texts), "judged": np.array(judged)}
        moments = [self.dataset.moment(int(index)) for index in rows["index"]]
        saved |= {"moments": np.array(moments), "chunk_seconds": np.array(self.dataset.seconds)}
        saved |= {"references": np.array([json.dumps(clip) for clip in references])}
        saved |= {"log_likelihood": rows["log_likelihood"], "perplexity": np.array([_exp(nats) for nats in of_clips])}
        return metrics, {**saved, **each, **matches}

    def _matches(self, judged: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Whether each text says of each kind of fact what some reference says, [N] bool."""
        found = {}
        for kind, words in self.facts.items():
            said = [captions.facts_of(text, words) for text in judged]
            meant = [{captions.facts_of(text, words) for text in clip} for clip in references]
            found[f"match_{kind}"] = np.array([facts in fit for facts, fit in zip(said, meant, strict=True)])
        return {**found, "match_all": np.all([*found.values()], axis=0)} if found else {}


def scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores of the corpus, and those of each clip [N], of texts and their references."""
    each = {"rouge_l": np.array([captions.rouge_l(*pair) for pair in zip(texts, references, strict=True)])}
    each["cider"] = captions.cider(texts, references)
    bleu = {f"bleu{n}": value for n, value in zip(captions.ORDERS, captions.bleu(texts, references))}
    found = {**bleu, **{name: float(values.mean()) for name, values in each.items()}}
    if captions.meteor_is_here():
        found["meteor"], each["meteor"] = captions.meteor(texts, references)
    else:
        log.warning("captions: no METEOR, for it needs %s", captions.METEOR_NEEDS)
    return found, each


def _exp(nats: float) -> float:
    return math.exp(min(float(nats), 700.0))


def bert_text(vocabulary: str) -> Callable[[str], str]:
    """Texts in the word pieces of BERT-uncased, put together again, as LaViLa does to both sides."""
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError:
        raise UserError("BERT_VOCABULARY needs tokenizers, which is not here: pip install 'videorl[text]'") from None
    if not Path(vocabulary).is_file():
        raise UserError(f"BERT_VOCABULARY {vocabulary}: no such file; name the vocab.txt of bert-base-uncased")
    pieces = BertWordPieceTokenizer(vocabulary, lowercase=True)
    return lambda text: pieces.decode(pieces.encode(text, add_special_tokens=False).ids)


def _read_facts(file: str) -> dict[str, dict[str, str]]:
    try:
        facts = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"FACTS {file}: {error}; name a JSON file of kind, word and meaning") from None
    if not isinstance(facts, dict) or not all(isinstance(words, dict) for words in facts.values()):
        raise UserError(f'FACTS {file}: expected {{"colour": {{"golden": "yellow", …}}, …}}')
    return facts
