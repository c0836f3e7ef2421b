"""How sure a proportion of few samples is."""

import math
import re

Z = 1.959964  # two-sided 95 %


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, `hits` of `n` independent samples (Wilson, 1927): fractions in 0..1."""
    share, spread = hits / n, Z * Z / n
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def hits_of(name: str, value: object, n: object) -> int | None:
    """How many of `n` samples a metric counts, such as `top1` or `t2v_r5`; None for one that counts none (a mean of
    classes, a rank, a recall of several captions each)."""
    if not re.fullmatch(r"top\d+|(\w+_)?r\d+", name) or not isinstance(n, int) or n < 1:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        return None
    hits = round(value * n)
    return hits if abs(value * n - hits) < 1e-6 * n else None
