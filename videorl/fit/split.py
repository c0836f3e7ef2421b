"""Training, validation and test videos of each class: equal files stay together, and what is not given is drawn."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from videorl.registry import UserError

SPLITS = ("train", "val", "test")


def split(
    classes: Mapping[str, str], hashes: Mapping[str, str], given: Mapping[str, str], share: float, seed: int
) -> dict[str, list[str]]:
    """Paths of each of SPLITS, by path. `share` of each class, at least one video, goes to val, and as much to test.

    `hashes`: equal for files with the same bytes, which go to one split. `given`: the split of each video where it is
    known; one that has none is drawn from those to train on. Raises `UserError` for one video in two classes or given
    splits, and for a class that is too few different ones.
    """
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    first: dict[str, str] = {}
    for path, name in sorted(classes.items()):
        other = first.setdefault(hashes[path], path)
        for of, what in ((classes, "classes"), (given, "of train, val and test")):
            if of.get(other) != of.get(path):
                raise UserError(f"{other} and {path} are the same video in two {what}; remove one of them")
        groups[name][hashes[path]].append(path)
    rng, found = np.random.default_rng(seed), {part: [] for part in SPLITS}
    for name, equal in sorted(groups.items()):
        for part, paths in _of_class(name, list(equal.values()), given, share, rng).items():
            found[part] += paths
    return {part: sorted(paths) for part, paths in found.items()}


def _of_class(
    name: str, groups: list[list[str]], given: Mapping[str, str], share: float, rng: np.random.Generator
) -> dict[str, list[str]]:
    drawn = [part for part in ("val", "test") if part not in given.values()]
    found = {part: [group for group in groups if given.get(group[0], "train") == part] for part in SPLITS}
    if empty := [part for part in SPLITS if part not in drawn and not found[part]]:
        raise UserError(f"class {name} has no video in {empty[0]} that can be read; move some there")
    free = found["train"]
    if len(free) <= len(drawn):
        raise UserError(
            f"class {name} has {len(free)} different videos{' in train' * bool(given)}; expected {len(drawn) + 1} or"
            " more: add some"
        )
    order = [free[k] for k in rng.permutation(len(free))]
    if drawn:
        held = min(max(1, round(share * len(order))), (len(order) - 1) // len(drawn))
        for part in drawn:
            found[part], order = order[:held], order[held:]
    found["train"] = order
    return {part: [path for group in chosen for path in group] for part, chosen in found.items()}


def class_weights(counts: Mapping[str, int]) -> list[float]:
    """Weights by which each class counts as much as any other, 1 in the mean over videos; none if counts are alike."""
    if max(counts.values()) <= 1.5 * min(counts.values()):
        return []
    total = sum(counts.values())
    return [round(total / len(counts) / count, 4) for count in counts.values()]
