"""Metrics as pure functions on numpy arrays."""

HIGHER, LOWER = 1, -1  # which way a metric is better

NO_FRACTIONS = ("medr", "meanr", "mse", "perplexity", "perplexity_clip", "cider", "cider_bert")


def is_fraction(name: str, value: object) -> bool:
    """Whether a metric is to be shown in per cent: a number in -1..1 that is no rank or error, whose best value is 1.

    Below 0 are those that compare with a baseline and find less.
    """
    return isinstance(value, (int, float)) and -1 <= value <= 1 and not name.endswith(NO_FRACTIONS)
