"""Captions as word numbers, as MIL-NCE makes them: words of a fixed dictionary, the others left out."""

import functools
import re
from collections.abc import Sequence

import numpy as np
import torch

from videorl.registry import UserError


def split_words(text: str) -> list[str]:
    """Letters, digits, `_` and `'`; upper case is kept, so "Cut" and "cut" are two words."""
    return re.findall(r"[\w']+", text)


class Tokenizer:
    """Texts to word numbers: place in the dictionary, from 1 on.

    Words that the dictionary lacks are dropped before the text is cut to `max_words`; shorter texts are filled up with
    0. A text of unknown words only is all zeros, and the model sees the vector of padding.
    """

    def __init__(self, dictionary: str, max_words: int):
        if max_words < 1:
            raise UserError(f"MAX_WORDS {max_words}: expected 1 or more")
        self.numbers, self.max_words = read_dictionary(dictionary), max_words

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 [K, max_words]."""
        rows = np.zeros((len(texts), self.max_words), np.int64)
        for row, text in zip(rows, texts):
            known = [self.numbers[word] for word in split_words(text) if word in self.numbers][: self.max_words]
            row[: len(known)] = known
        return torch.from_numpy(rows)


@functools.lru_cache(maxsize=2)
def read_dictionary(file: str) -> dict[str, int]:
    """Word to number, from `dict.npy`: an array of words. Shared by all that name the file: do not change it."""
    if not file:
        raise UserError("TEXT.DICT is empty; name the dict.npy that belongs to the word vectors")
    try:
        words = np.load(file)
    except OSError as error:
        raise UserError(f"TEXT.DICT {file}: {error.strerror or 'no .npy file'}; name a dict.npy") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"TEXT.DICT {file}: {str(error)[:80]}; expected an array of texts: np.array(words)") from None
    if not isinstance(words, np.ndarray) or words.ndim != 1 or words.dtype.kind != "U":
        raise UserError(
            f"TEXT.DICT {file}: expected an array [words] of texts, as np.save(file, np.array(words)) writes"
        )
    return {word: number for number, word in enumerate(words.tolist(), 1)}
