"""Training, validation and test videos of each class: equal files stay together, the rest is drawn."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from videorl.fit.folder import LEAST
from videorl.registry import UserError

SPLITS = ("train", "val", "test")


def split(classes: Mapping[str, str], hashes: Mapping[str, str], share: float, seed: int) -> dict[str, list[str]]:
    """Paths of each of SPLITS, by path. `share` of each class, at least one video, goes to val, and as much to test.

    `hashes`: equal for files with the same bytes, which go to one split. Raises `UserError` for one video in two
    classes, and for a class that is too few different ones.
    """
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    first: dict[str, str] = {}
    for path, name in sorted(classes.items()):
        other = first.setdefault(hashes[path], path)
        if classes[other] != name:
            raise UserError(f"{other} and {path} are the same video in two classes; remove one of them")
        groups[name][hashes[path]].append(path)
    rng, found = np.random.default_rng(seed), {part: [] for part in SPLITS}
    for name, equal in sorted(groups.items()):
        if len(equal) < LEAST:
            raise UserError(f"class {name} has {len(equal)} different videos; expected {LEAST} or more: add some")
        order = [list(equal.values())[k] for k in rng.permutation(len(equal))]
        held = min(max(1, round(share * len(order))), (len(order) - 1) // 2)
        for part, chosen in zip(("val", "test", "train"), (order[:held], order[held : 2 * held], order[2 * held :])):
            found[part] += [path for group in chosen for path in group]
    return {part: sorted(paths) for part, paths in found.items()}


def class_weights(counts: Mapping[str, int]) -> list[float]:
    """Weights by which each class counts as much as any other, 1 in the mean over videos; none if counts are alike."""
    if max(counts.values()) <= 1.5 * min(counts.values()):
        return []
    total = sum(counts.values())
    return [round(total / len(counts) / count, 4) for count in counts.values()]
