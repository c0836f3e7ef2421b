"""Several labelled data sets as one, each with its own label space."""

import copy
import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from videorl.spec import Spec


class Joint:
    """Data sets one after the other, each as often as `replicas` says, their samples numbered through.

    A sample is one of its data set with `labels` [sum of C] float: its targets at the place of its label space, zero in
    all others (the order is that of `spec.labels`), and `spaces` [S] float: 1 in its own place. Data sets and replicas
    draw different random numbers.
    """

    def __init__(self, spec: Spec, parts: Mapping[str, object], replicas: Mapping[str, int]):
        self.spaces, self.parts = list(spec.labels), dict(parts)
        self.split = next(iter(parts.values())).split
        self.before = np.cumsum([0, *spec.labels.values()])  # columns in front of each label space
        self.members = [(name, r) for name in parts for r in range(replicas[name])]
        self.data = [_reseeded(parts[name], k, spec.seed) for k, (name, _) in enumerate(self.members)]
        self.starts = np.cumsum([0, *map(len, self.data)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def sizes(self) -> dict[str, int]:
        """Samples an epoch takes from each data set, replicas counted."""
        return {name: sum(len(d) for (n, _), d in zip(self.members, self.data) if n == name) for name in self.parts}

    @property
    def epoch(self) -> int:
        return self.data[0].epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        for data in self.data:
            data.epoch = epoch

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        found = [getattr(data, "class_names", {}) for data in self.parts.values()]
        return {space: names for of_one in found for space, names in of_one.items()}

    @property
    def class_counts(self) -> dict[str, np.ndarray]:
        """Label space to the samples of each class [C], replicas not counted."""
        found = [getattr(data, "class_counts", {}) for data in self.parts.values()]
        return {space: counts for of_one in found for space, counts in of_one.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of all files and labels, and of the order and number of the data sets."""
        text = "\n".join(f"{name} {replica} {self.parts[name].fingerprint}" for name, replica in self.members)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def path(self, i: int) -> str:
        member, row = self._find(i)
        return self.data[member].path(row)

    def __getitem__(self, i: int) -> list[dict]:
        member, row = self._find(i)
        name = self.members[member][0]
        share = F.one_hot(torch.tensor(self.spaces.index(name)), len(self.spaces)).float()
        columns = self.columns_of(name)
        items = self.data[member][row]
        for item in items:
            labels = torch.zeros(int(self.before[-1]))
            own = item["labels"]
            labels[columns] = own if own.ndim else F.one_hot(own, columns.stop - columns.start).float()
            item |= {"labels": labels, "spaces": share, "index": torch.tensor(i)}
        return items

    def columns_of(self, space: str) -> slice:
        """Where the targets of a label space stand in `labels`."""
        place = self.spaces.index(space)
        return slice(int(self.before[place]), int(self.before[place + 1]))

    def _find(self, i: int) -> tuple[int, int]:
        """The member that sample i belongs to, and its row there."""
        member = int(np.searchsorted(self.starts, i, side="right")) - 1
        return member, int(i - self.starts[member])


def _reseeded(data, number: int, seed: int):
    """A copy that shares the records but draws its own random numbers."""
    twin = copy.copy(data)
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
    twin.spec = dataclasses.replace(data.spec, seed=int(state[0] >> 1))
    return twin
