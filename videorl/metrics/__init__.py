"""Metrics as pure functions on numpy arrays."""

NO_FRACTIONS = ("medr", "meanr", "mse")


def is_fraction(name: str, value: object) -> bool:
    """Whether a metric is to be shown in per cent: a number in 0..1 that is no rank or error, whose best value is 1."""
    return isinstance(value, (int, float)) and 0 <= value <= 1 and not name.endswith(NO_FRACTIONS)
