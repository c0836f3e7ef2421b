"""The text tower of MIL-NCE: frozen word2vec vectors, one hidden layer, the maximum over words.

Miech et al., End-to-End Learning of Visual Representations from Uncurated Instructional Videos, CVPR 2020; reference
code: antoine77340/MIL-NCE_HowTo100M. State-dict names are theirs.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videorl import untrusted
from videorl.registry import UserError

log = logging.getLogger("videorl")

WORD_DIM = 300


class TextTower(nn.Module):
    """Word numbers `[..., L]` to embeddings `[..., D]`."""

    def __init__(self, table: Tensor, embed_dim: int, *, hidden: int = 2048, freeze: bool = True):
        super().__init__()
        self.word_embd = nn.Embedding.from_pretrained(table, freeze)
        self.fc1 = nn.Linear(table.shape[1], hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, text: Tensor) -> Tensor:
        # Padding takes part in the maximum like a word, as row 0 of the table. ReLU rises: it may follow the maximum,
        # where there is less to rectify and to keep for the backward pass.
        words = self.fc1(self.word_embd(text))  # [..., L, hidden]
        return self.fc2(F.relu(words.max(-2).values))


def word_table(file: str, vocabulary: int, dictionary: str = "") -> Tensor:
    """Word vectors `[words, D]`, published D = 300; row 0 is that of padding.

    They come from `file` (word2vec.pth: one tensor). Without a file the table is random and has `vocabulary` rows, for
    a checkpoint to fill. Raises `UserError` if the table is too small for `dictionary` (dict.npy), where that is named.
    """
    table = _read_table(file) if file else _random_table(vocabulary)
    if dictionary:
        _check_fit(dictionary, f"TEXT.WORD2VEC {file}" if file else "S3D.VOCABULARY", len(table))
    return table


def _random_table(vocabulary: int) -> Tensor:
    log.warning(
        "TEXT.WORD2VEC is empty: the vectors of %d words are random until a checkpoint brings its own", vocabulary
    )
    return torch.randn(vocabulary, WORD_DIM)


def _read_table(file: str) -> Tensor:
    if not Path(file).is_file():
        raise UserError(f"TEXT.WORD2VEC {file} does not exist; expected the word2vec.pth of the published code")
    try:
        table = untrusted.content(Path(file))
    except UserError as error:
        raise UserError(f"TEXT.WORD2VEC {file} {error}") from None
    if not isinstance(table, Tensor) or table.ndim != 2 or not table.is_floating_point():
        shape = tuple(table.shape) if isinstance(table, Tensor) else type(table).__name__
        raise UserError(
            f"TEXT.WORD2VEC {file}: expected one tensor [words, D], published D = {WORD_DIM}, found {shape}"
        )
    return table.float()


def _check_fit(dictionary: str, source: str, rows: int) -> None:
    """Word numbers are places in the dictionary, from 1 on, so the table has one row more than that has words."""
    try:
        words = len(np.load(dictionary, mmap_mode="r"))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise UserError(f"TEXT.DICT {dictionary} cannot be read: {str(error)[:80]}; name a dict.npy") from None
    found = f"TEXT.DICT {dictionary} has {words} words, {source} {rows} rows, expected {words + 1}"
    if rows <= words:
        raise UserError(f"{found}; name the dict.npy that belongs to the word vectors")
    if rows > words + 1:
        log.warning("%s: words get the vectors of others unless the two belong together", found)
