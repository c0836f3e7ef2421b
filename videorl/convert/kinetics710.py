"""Rows of a head for the 710 classes of Kinetics-400, -600 and -700 together, for the classes of one of these.

Wang et al., VideoMAE V2, CVPR 2023 (OpenGVLab/VideoMAEv2): its files `label_710to400.json`, `…600`, `…700`.
"""

import functools
import json
from pathlib import Path

import torch
from torch import Tensor

CLASSES = 710


@functools.cache
def _lists() -> dict[str, list[int]]:
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def rows(there: int, here: int) -> Tensor | None:
    """Of `here` classes in the order of Kinetics' own label map, the rows of a head of `there`. None: no such pair."""
    return torch.tensor(_lists()[str(here)]) if there == CLASSES and str(here) in _lists() else None
