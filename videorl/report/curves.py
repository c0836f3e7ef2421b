"""Line charts as data: the page draws them as SVG, so that they need no script; hovering shows the values of a step."""

import math
from dataclasses import dataclass, field

import numpy as np

from videorl.metrics import is_fraction
from videorl.report.read import NO_METRICS, RunFolder, number, percent, text_of

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 22, 10, 26  # margins around the plot
GROUPS = 200  # columns of a chart at most: neighbouring steps share one, which keeps their least and greatest value
LARGEST = 1e300  # what is beyond it counts as infinite
MARKED = 40  # a line of up to so many points marks each


@dataclass
class Line:
    """A curve: steps and values (NaN and infinity allowed), and what is drawn of it."""

    name: str
    x: np.ndarray
    y: np.ndarray
    faint: bool = False
    colour: int = 0
    path: str = ""
    dots: list[tuple[str, str]] = field(default_factory=list)
    last: str = ""


@dataclass
class Chart:
    """A chart in SVG coordinates. `hits` are columns (x, width, text) that show their text when pointed at."""

    title: str
    lines: list[Line]
    note: str
    label: str
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    hits: list[tuple[str, str, str]]
    crosses: list[str]


def charts(folder: RunFolder) -> list[Chart]:
    """The charts of a run: loss, its parts, learning rate, gradient norm, time per step, and every evaluation.

    A metric that training and evaluations have in common stands in one chart.
    """
    train = folder.train
    epochs = {line["step"]: line.get("epoch") for line in [*train, *sum(folder.evals.values(), [])]}
    loss = _line("each step", train, "loss")
    flat = [{"step": line["step"], **(line.get("losses") or {})} for line in train]
    parts = sorted({name for line in flat for name in line} - {"step"})
    wanted = [
        ("Loss", [_faint(loss), _smoothed("loss", loss), *_evaluated("loss", folder)]),
        ("Parts of the loss", [_smoothed(name, _line(name, flat, name)) for name in parts] if len(parts) > 1 else []),
        *((metric, _compared(metric, folder)) for metric in _metrics(train) if metric != "loss"),
        ("Learning rate", [_line("lr", train, "lr")]),
        ("Gradient norm", [_line("norm before clipping", train, "grad_norm")]),
        ("Seconds per step", [_line("whole step", train, "dt"), _line("waiting for data", train, "dt_data")]),
    ]
    found = [(title, [line for line in lines if len(line.x)], "") for title, lines in wanted]
    for name, lines in folder.evals.items():
        found += _evaluation(name, lines, alone={*_metrics(lines)} - {"loss", *_metrics(train)})
    return [_chart(title, lines, note, epochs) for title, lines, note in found if lines]


def _metrics(lines: list[dict]) -> list[str]:
    """What lines hold beside the position and the cost of a step."""
    return [key for key in dict.fromkeys(key for line in lines for key in line) if key not in NO_METRICS]


def _compared(metric: str, folder: RunFolder) -> list[Line]:
    """A metric on training batches, and on the data of each evaluation that has it."""
    lines = [_smoothed("training batches", _line(metric, folder.train, metric)), *_evaluated(metric, folder)]
    return _as_percent(metric, lines)


def _evaluated(metric: str, folder: RunFolder) -> list[Line]:
    return [line for name, lines in folder.evals.items() if len((line := _line(name, lines, metric)).x)]


def _evaluation(name: str, lines: list[dict], alone: set[str]) -> list[tuple[str, list[Line], str]]:
    """One chart for those metrics that are fractions, and one for each that is not: they share no axis.

    `alone`: the metrics that stand in no chart yet.
    """
    curves = [curve for metric in _metrics(lines) if metric in alone and len((curve := _line(metric, lines, metric)).x)]
    fractions = [c for c in curves if _is_fraction(c.name, c)]
    note = f"last: n={text_of(lines[-1].get('n'))}/{text_of(lines[-1].get('of'))}"
    others = [(f"{name}: {c.name}", [c], note) for c in curves if c not in fractions]
    return [(f"{name}: metrics", [_as_percent(c.name, [c])[0] for c in fractions], note), *others]


def _is_fraction(metric: str, line: Line) -> bool:
    return all(is_fraction(metric, y) for y in line.y[np.isfinite(line.y)])


def _as_percent(metric: str, lines: list[Line]) -> list[Line]:
    if all(_is_fraction(metric, line) for line in lines):
        for line in lines:
            line.last = percent(float(line.y[-1])) if len(line.y) else ""
    return lines


def _line(name: str, lines: list[dict], key: str) -> Line:
    points = [(line["step"], line[key]) for line in lines if number(line.get(key))]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    y = np.where(np.abs(y) >= LARGEST, np.copysign(np.inf, y), y)
    return Line(name, x, y, last=text_of(float(y[-1])) if len(y) else "")


def _faint(line: Line) -> Line:
    return Line(line.name, line.x, line.y, faint=True, last=line.last)


def _smoothed(name: str, line: Line) -> Line:
    """Exponential moving average over a fortieth of the points, without the bias of its start; NaN is passed over."""
    keep = 1 - 1 / max(1.0, len(line.y) / 40)
    total, weight, values = 0.0, 0.0, []
    for value in line.y:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        values.append(total / weight if weight else math.nan)
    return Line(
        f"{name}, smoothed" if keep else name, line.x, np.array(values), last=text_of(values[-1]) if values else ""
    )


def _chart(title: str, lines: list[Line], note: str, epochs: dict) -> Chart:
    steps = np.unique(np.concatenate([line.x for line in lines]))
    groups = np.array_split(steps, min(len(steps), GROUPS))
    every = np.concatenate([line.y for line in lines])
    finite = every[np.isfinite(every)]
    y_of, y_ticks = _y_axis(finite if len(finite) else np.array([0.0, 1.0]))
    span = (steps[-1] - steps[0]) or 1.0

    def x_of(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - steps[0]) / span if len(steps) > 1 else 0.5)

    bad = sorted({float(x) for line in lines for x in line.x[~np.isfinite(line.y)]})
    if bad:
        note = f"{note + '; ' if note else ''}{len(bad)} step(s) with NaN or infinity (×), the first at {bad[0]:g}"
    for colour, line in enumerate(line for line in lines if not line.faint):
        line.colour = colour
    for line in lines:
        _draw(line, groups, x_of, y_of)
    said = ", ".join(f"{line.name} {line.last} at the end" for line in lines)
    return Chart(
        title=title,
        lines=lines,
        note=note,
        label=f"{title} from step {steps[0]:g} to {steps[-1]:g}: {said}",
        x_ticks=[(f"{x_of(x):.1f}", f"{x:g}") for x in _ticks(steps[0], steps[-1], 5)],
        y_ticks=[(f"{y_of(y):.1f}", f"{y:.6g}") for y in y_ticks],
        hits=_hits(lines, groups, x_of, epochs),
        crosses=[f"{x_of(x):.1f}" for x in bad[:GROUPS]],
    )


def _draw(line: Line, groups: list[np.ndarray], x_of, y_of) -> None:
    """Sets the path of a line: the least and the greatest value of each group of steps, broken at NaN and infinity."""
    path, pen = [], "M"
    for group in groups:
        x, y = _within(line, group)
        good = np.flatnonzero(np.isfinite(y))
        if len(good):
            for k in sorted({good[np.argmin(y[good])], good[np.argmax(y[good])]}):
                path.append(f"{pen}{x_of(x[k]):.1f} {y_of(y[k]):.1f}")
                pen = "L"
        if len(good) < len(y):
            pen = "M"
    line.path = "".join(path) + ("h0" if path else "")
    if len(line.x) <= MARKED and not line.faint:
        good = np.isfinite(line.y)
        line.dots = [(f"{x_of(x):.1f}", f"{y_of(y):.1f}") for x, y in zip(line.x[good], line.y[good], strict=True)]


def _within(line: Line, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, last = np.searchsorted(line.x, group[0], "left"), np.searchsorted(line.x, group[-1], "right")
    return line.x[first:last], line.y[first:last]


def _hits(lines: list[Line], groups: list[np.ndarray], x_of, epochs: dict) -> list[tuple[str, str, str]]:
    borders = [(a[-1] + b[0]) / 2 for a, b in zip(groups[:-1], groups[1:], strict=True)]
    edges = [LEFT, *(x_of(border) for border in borders), WIDTH - RIGHT]
    hits = []
    for group, left, right in zip(groups, edges[:-1], edges[1:], strict=True):
        rows = [f"step {group[0]:g}" + (f" to {group[-1]:g}" if len(group) > 1 else "")]
        if number(epoch := epochs.get(group[-1])):
            rows[0] += f", epoch {epoch:.4g}"
        for line in lines:
            _, y = _within(line, group)
            if len(y):
                spread = f" ({text_of(float(y.min()))} to {text_of(float(y.max()))})" if len(y) > 1 else ""
                rows.append(f"{line.name}: {text_of(float(y[-1]))}{spread}")
        hits.append((f"{left:.1f}", f"{right - left:.1f}", "\n".join(rows)))
    return hits


def _y_axis(values: np.ndarray):
    """The map from value to pixel and its ticks; logarithmic where a few spikes would press the rest flat."""
    low, high = float(values.min()), float(values.max())
    room = HEIGHT - TOP - BOTTOM
    if low > 0 and high > 20 * float(np.median(values)):
        a, b = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return lambda y: HEIGHT - BOTTOM - room * (math.log10(y) - a) / (b - a), [10.0**k for k in range(a, b + 1)]
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    bottom, top = low - margin if low < 0 or low > margin else min(low, 0.0), high + margin
    return lambda y: HEIGHT - BOTTOM - room * (y - bottom) / (top - bottom), _ticks(bottom, top, 5)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high, about `count` of them."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(power * k for k in (1, 2, 5, 10) if (high - low) / (power * k) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]
