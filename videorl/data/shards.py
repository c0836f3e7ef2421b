"""MMPT's sharded arrays (facebookresearch/fairseq, examples/MMPT, mmpt/utils/shardedtensor.py; Norton reads the same).

`PREFIX_data.npy` holds the rows of all items end to end, `PREFIX_starts.npy` int64 [items + 1] where each begins. The
shards of a split are numbered `SPLIT_K`, and `SPLIT_meta.pkl` is {K: [names of its items]}.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from videorl.data.pickles import load_plain
from videorl.registry import UserError


class Sharded:
    """A shard, mapped into memory: `shard[i]` are the rows [n, …] of item i. Raises `UserError` for damaged files."""

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        self.data, self.starts = (_mapped(Path(f"{prefix}_{name}.npy")) for name in ("data", "starts"))
        starts = self.starts
        if starts.ndim != 1 or starts.dtype.kind not in "iu" or not len(starts) or not self.data.ndim:
            raise UserError(
                f"{prefix}_starts.npy: expected whole numbers [items + 1], found {starts.dtype} {starts.shape}"
            )
        if starts[0] != 0 or starts[-1] != len(self.data) or (np.diff(starts) < 0).any():
            raise UserError(
                f"{prefix}: {len(self.data)} rows of data, where its starts end at {starts[-1]}: make both files again"
            )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.data[self.starts[i] : self.starts[i + 1]]


def _mapped(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or 'no array'}; both files of a shard must be there") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{file} is damaged ({str(error)[:80]}); make it again") from None


def starts_of(counts: Sequence[int]) -> np.ndarray:
    """int64 [items + 1], from the rows of each item."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def meta_bytes(items: Mapping[int, Sequence[str]]) -> bytes:
    """The content of `SPLIT_meta.pkl`."""
    return pickle.dumps({shard: list(names) for shard, names in items.items()}, protocol=4)


def read_meta(file: Path) -> dict[int, list[str]]:
    """Shard -> names of its items. Raises `UserError`; nothing that the pickle names is run."""
    found = load_plain(file)
    if not isinstance(found, dict) or not all(isinstance(names, list) for names in found.values()):
        raise UserError(f"{file}: expected {{shard: [names of its items]}}")
    return {int(shard): [str(name) for name in names] for shard, names in found.items()}
