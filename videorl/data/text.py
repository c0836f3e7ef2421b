"""Texts as numbers: words of a fixed dictionary as MIL-NCE takes them, CLIP's byte pairs, or tokens of transformers.

The last two come from open_clip and transformers (`pip install videorl[text]`). The network is asked for hub:NAME only.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from videorl.registry import UserError, did_you_mean
from videorl.spec import HUB, Spec, Text

EXPECTED = f"words, clip, a folder with tokenizer.json or vocab.txt, or {HUB}NAME on the Hugging Face hub"


def split_words(text: str) -> list[str]:
    """Letters, digits, `_` and `'`; upper case is kept, so "Cut" and "cut" are two words."""
    return re.findall(r"[\w']+", text)


def tokenizer(text: Text):
    """A callable that makes texts to int64 [K, text.length]. It pickles, and has the `padding` number.

    Raises `UserError` for a tokenizer that is unknown or not installed.
    """
    if text.tokenizer == "words":
        return WordTokenizer(text.dictionary, text.length)
    if text.length < 3:
        raise UserError(f"TEXT.MAX_WORDS {text.length}: expected 3 or more, for the tokens of start and end, and text")
    if text.tokenizer == "clip":
        return ClipTokenizer(text.length, text.keep_end)
    path = Path(text.tokenizer)
    vocabulary = path / "vocab.txt" if path.is_dir() and not (path / "tokenizer.json").exists() else path
    if vocabulary.suffix == ".txt" and vocabulary.is_file():
        return WordPieceTokenizer(vocabulary, text.length)
    found = from_transformers(text.tokenizer)
    if found("a")["input_ids"][-1] in (found.sep_token_id, found.eos_token_id):
        return HubTokenizer(found, text.length)
    return CausalTokenizer(found, text)


class ClassTexts:
    """A data set whose classes have texts, `class_texts`, that an evaluation makes to tokens."""

    spec: Spec

    @functools.cached_property
    def tokenize(self):
        """Made when it is asked for: to train on labels none is needed."""
        return tokenizer(self.spec.text)


class WordTokenizer:
    """Texts to word numbers: place in the dictionary, from 1 on.

    Words that the dictionary lacks are dropped before the text is cut to `max_words`; shorter texts are filled up with
    0. A text of unknown words only is all zeros, and the model sees the vector of padding.
    """

    padding = 0

    def __init__(self, dictionary: str, max_words: int):
        self.numbers, self.max_words = read_dictionary(dictionary), max_words

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 [K, max_words]."""
        rows = np.zeros((len(texts), self.max_words), np.int64)
        for row, text in zip(rows, texts):
            known = [self.numbers[word] for word in split_words(text) if word in self.numbers][: self.max_words]
            row[: len(known)] = known
        return torch.from_numpy(rows)


class ClipTokenizer:
    """CLIP's 49,408 byte pairs: start, text, end, zeros. The end token has the largest number.

    Where a text is cut, the end token stays with `keep_end`, as in OpenAI's code: the model reads the embedding there.
    LaViLa and AVION cut it off, too, and then read another place; that concerns texts of more than 75 tokens.
    """

    padding = 0

    def __init__(self, length: int, keep_end: bool = True):
        self.length, self.keep_end = length, keep_end
        byte_pairs()

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 [K, length]."""
        pairs, rows = byte_pairs(), np.zeros((len(texts), self.length), np.int64)
        for row, text in zip(rows, texts):
            numbers = [pairs.sot_token_id, *pairs.encode(text), pairs.eot_token_id]
            row[: len(numbers)] = numbers[: self.length]
            if self.keep_end and len(numbers) > self.length:
                row[-1] = pairs.eot_token_id
        return torch.from_numpy(rows)


@functools.cache
def byte_pairs():
    """open_clip's tokenizer, whose file of byte pairs is OpenAI's, with OpenAI's names of start and end."""
    try:
        import regex
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise _not_installed("clip", "open_clip", error) from None
    pairs = SimpleTokenizer()
    pattern = pairs.pat.pattern
    for own, published in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        pairs.encoder[published] = pairs.encoder[own]
        pairs.cache[published] = published
        pattern = pattern.replace(own, re.escape(published))
    pairs.pat = regex.compile(pattern, regex.IGNORECASE)
    return pairs


class WordPieceTokenizer:
    """BERT's word pieces, lower case, of a `vocab.txt`: [CLS], text, [SEP], [PAD]s. `size`: how many there are."""

    def __init__(self, vocabulary: Path, length: int):
        try:
            from tokenizers import BertWordPieceTokenizer
        except ImportError as error:
            raise _not_installed(str(vocabulary), "tokenizers", error) from None
        words = vocabulary.read_text(encoding="utf-8").split("\n")
        if missing := [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in words]:
            raise UserError(
                f"TEXT.TOKENIZER {vocabulary}: expected a vocabulary of BERT, found none of {', '.join(missing)}"
            )
        self.padding, self.size = words.index("[PAD]"), len(words) - (words[-1] == "")
        if self.padding:
            raise UserError(f"TEXT.TOKENIZER {vocabulary}: [PAD] has number {self.padding}; expected 0, as BERT's")
        self._tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(pad_id=self.padding, length=length)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 [K, length]."""
        return torch.tensor([encoded.ids for encoded in self._tokenizer.encode_batch(list(texts))])


class HubTokenizer:
    """A tokenizer of transformers that ends texts itself; they are filled up with its padding token."""

    def __init__(self, tokens, length: int):
        self.length, self._tokenizer = length, tokens
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.padding, self.size = int(self._tokenizer.pad_token_id), len(self._tokenizer)
        if self.padding:
            raise UserError(
                "TEXT.TOKENIZER: expected one that fills up with token 0, as BERT's and DistilBERT's do, which text"
                f" towers leave out; found one that does so with {self.padding}: name another"
            )

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 [K, length]."""
        filled = {"padding": "max_length", "truncation": True, "max_length": self.length}
        return self._tokenizer(list(texts), return_tensors="pt", **filled)["input_ids"]


class CausalTokenizer:
    """A tokenizer of transformers that leaves the ends of texts to others, as those of language models such as GPT-2:
    start, text, end, then -1, which is no token. `size`: how many tokens there are.

    Start and end of GPT-2 are the same token. LaViLa fills up with 0, which is GPT-2's "!".
    """

    padding = -1

    def __init__(self, tokens, text: Text):
        self.length, self.keep_end, self._tokenizer = text.length, text.keep_end, tokens
        self.end, self.size = tokens.eos_token_id, len(tokens)
        if self.end is None:
            raise UserError(f"TEXT.TOKENIZER {text.tokenizer} has no end token (eos_token); take another one")
        self.start = self.end if tokens.bos_token_id is None else tokens.bos_token_id

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 [K, length]."""
        rows = torch.full((len(texts), self.length), self.padding)
        for row, text in zip(rows, texts):
            numbers = [self.start, *self._tokenizer.encode(text, add_special_tokens=False), self.end]
            if len(numbers) > self.length:
                numbers = numbers[: self.length - 1] + [self.end if self.keep_end else numbers[self.length - 1]]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of a row `[L]`: what stands between its start and its first end."""
        own = [int(number) for number in numbers[1:]]
        until = next((k for k, number in enumerate(own) if number in (self.end, self.padding)), len(own))
        return self._tokenizer.decode(own[:until], clean_up_tokenization_spaces=False).strip()


def from_transformers(name: str, key: str = "TEXT.TOKENIZER"):
    """The tokenizer of a folder, or of the hub. Raises `UserError`."""
    local = not name.startswith(HUB)
    if local and not Path(name).exists():
        hint = did_you_mean(name, ("words", "clip"))
        raise UserError(f"unknown {key} {name!r}{hint} (expected {EXPECTED})")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise _not_installed(name, "transformers", error) from None
    try:
        return AutoTokenizer.from_pretrained(name.removeprefix(HUB), local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:80]
        raise UserError(f"{key} {name}: no tokenizer is read from there ({reason})") from None


def _not_installed(name: str, library: str, error: ImportError) -> UserError:
    return UserError(f"TEXT.TOKENIZER {name} needs {library} ({error}): pip install videorl[text]")


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
