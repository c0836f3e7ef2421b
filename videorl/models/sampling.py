"""What a language model writes next, so that a text depends on (seed, clip, number of the text) and on nothing else.

Random numbers come from counters, as in Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011: token v at
step t of a text has its own, whatever else is in the batch. The function that makes them is the last part of SplitMix64
(Steele et al., OOPSLA 2014).
"""

import torch
from torch import Tensor

from videorl.spec import Sampling

GOLDEN = -7046029254386353131  # 2 ** 64 divided by the golden ratio, as int64
MULTIPLIERS = (-4658895280553007687, -7723592293110705685)


class Writer:
    """Chooses the next token of each text as a processor of transformers' logits, and sums `log_likelihood` `[N]`: that
    of the chosen tokens under the model itself, up to the first end.

    Temperature, then the top k, then the top p, as LaViLa; of what is left the token is drawn by adding Gumbel noise to
    the logits: their largest sum, which greedy decoding takes, is a sample of the softmax.
    """

    def __init__(self, index: Tensor, sampling: Sampling, end: int):
        """`index` `[B]`: numbers of the clips; the texts of a clip stand one after the other."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self.end, self.greedy = end, sampling.temperature == 0
        self.warpers = [] if self.greedy else [TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        self.keys = keys(sampling.seed, index, sampling.returns)
        self.log_likelihood = torch.zeros(len(self.keys), device=index.device)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Tokens so far `[N, t]` and logits `[N, V]` to numbers `[N, V]` whose largest is the choice."""
        chances = scores
        if not self.greedy:
            for warper in self.warpers:
                chances = warper(ids, chances)
            chances = chances + gumbel(self.keys, ids.shape[1], scores.shape[1])
        chosen = chances.argmax(1, keepdim=True)
        logs = scores.gather(1, chosen)[:, 0] - scores.logsumexp(1)
        self.log_likelihood += logs.where((ids[:, 1:] != self.end).all(1), 0.0)
        return chances


def keys(seed: int, index: Tensor, returns: int) -> Tensor:
    """A number int64 `[B * returns]` for each text of each clip."""
    clips = mix(mix(torch.full_like(index, seed)) + index * GOLDEN)
    return mix(clips[:, None] + torch.arange(1, returns + 1, device=index.device) * GOLDEN).flatten()


def gumbel(keys: Tensor, step: int, tokens: int) -> Tensor:
    """Noise float32 `[N, tokens]` with the standard Gumbel distribution, for the texts with these keys `[N]`."""
    at = mix(keys + torch.full_like(keys, step) * GOLDEN)
    bits = mix(at[:, None] + torch.arange(1, tokens + 1, device=keys.device) * GOLDEN)
    uniform = ((bits >> 41) + (2**22 + 0.5)) * 2.0**-23  # in the middle of 2 ** 23 equal parts of 0..1
    return -torch.log(-torch.log(uniform))


def mix(x: Tensor) -> Tensor:
    """A fixed one-to-one map of int64, of which near numbers come out as if drawn at random."""
    x = x ^ _shifted(x, 30)
    x = x * MULTIPLIERS[0]
    x = x ^ _shifted(x, 27)
    x = x * MULTIPLIERS[1]
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
