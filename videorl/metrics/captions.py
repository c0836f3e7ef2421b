"""Captions against references: BLEU, ROUGE-L, CIDEr-D and METEOR, of words split at spaces, with the figures of
coco-caption, which nlg-eval wraps.

A hypothesis is a text, its references are a list of texts; nothing is put into lower case here. Scores are 0..1, of
CIDEr-D 0..10.
"""

import math
import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDERS = (1, 2, 3, 4)  # lengths of n-grams
BETA = 1.2  # weight of recall in ROUGE-L
SIGMA = 6.0  # of the penalty that CIDEr-D gives to differences of length, words
METEOR_NEEDS = "Java and METEOR 1.5 (apt-get install default-jre-headless; pip install pycocoevalcap)"


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the corpus (Papineni et al., ACL 2002), with the reference of the nearest length; of
    sacrebleu."""
    from sacrebleu.metrics import BLEU

    most = max(map(len, references))
    streams = [[texts[k] if k < len(texts) else None for texts in references] for k in range(most)]
    scorers = [BLEU(tokenize="none", smooth_method="none", max_ngram_order=n) for n in ORDERS]
    return [scorer.corpus_score(list(hypotheses), streams).score / 100 for scorer in scorers]


def rouge_l(hypothesis: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence (Lin, 2004): the best precision and the best recall of all."""
    words = hypothesis.split()
    common = [(_common(words, reference.split()), len(reference.split())) for reference in references]
    if not words or not any(length for length, _ in common):
        return 0.0
    precision = max(length / len(words) for length, _ in common)
    recall = max(length / count for length, count in common if count)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0  # row[k - 1] of the word before
        for k, other in enumerate(second, 1):
            before, row[k] = row[k], before + 1 if word == other else max(row[k], row[k - 1])
    return row[-1]


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each clip [N] (Vedantam et al., CVPR 2015), with the document frequencies of these references."""
    scores = np.zeros(len(hypotheses))
    for n in ORDERS:
        seen = Counter(gram for texts in references for gram in {g for text in texts for g in _grams(text, n)})
        weight = {gram: math.log(len(references)) - math.log(count) for gram, count in seen.items()}
        unseen = math.log(max(len(references), 1))
        for k, (hypothesis, texts) in enumerate(zip(hypotheses, references, strict=True)):
            vector = _weighted(hypothesis, n, weight, unseen)
            alike = [
                _cosine(vector, _weighted(text, n, weight, unseen))
                * math.exp(-((len(hypothesis.split()) - len(text.split())) ** 2) / (2 * SIGMA**2))
                for text in texts
            ]
            scores[k] += 10 * np.mean(alike) / len(ORDERS)
    return scores


def _grams(text: str, n: int) -> Counter:
    words = text.split()
    return Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))


def _weighted(text: str, n: int, weight: dict, unseen: float) -> dict:
    return {gram: count * weight.get(gram, unseen) for gram, count in _grams(text, n).items()}


def _cosine(hypothesis: dict, reference: dict) -> float:
    """The hypothesis's n-grams count as often as the reference has them, at most."""
    norms = [math.sqrt(sum(value**2 for value in vector.values())) for vector in (hypothesis, reference)]
    shared = hypothesis.keys() & reference.keys()
    product = math.fsum(min(hypothesis[gram], reference[gram]) * reference[gram] for gram in shared)
    return product / (norms[0] * norms[1]) if all(norms) else 0.0


def meteor_is_here() -> bool:
    """Whether METEOR_NEEDS are installed."""
    try:
        from pycocoevalcap.meteor import meteor  # noqa: F401
    except ImportError:
        return False
    return shutil.which("java") is not None


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """METEOR 1.5 of the corpus, and of each clip [N] (Denkowski and Lavie, 2014), by the published Java program."""
    from pycocoevalcap.meteor.meteor import Meteor

    texts = {k: [_one_line(hypothesis)] for k, hypothesis in enumerate(hypotheses)}
    total, each = Meteor().compute_score({k: [_one_line(t) for t in ts] for k, ts in enumerate(references)}, texts)
    return total, np.array(each)


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())


def facts_of(text: str, words: dict[str, str]) -> tuple[str, ...]:
    """What the words of a text that `words` knows mean, in order and without repetition."""
    return tuple(sorted({words[word] for word in text.split() if word in words}))
