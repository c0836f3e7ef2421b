"""Texts of a list in other words, by any text-to-text or chat model of transformers, as LaViLa's rephraser does it."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from videorl.data.narrations import Narrations
from videorl.data.text import from_transformers
from videorl.features.each import in_batches, shown
from videorl.features.encoder import fingerprint
from videorl.models.text import pretrained
from videorl.narrate import parts
from videorl.narrate.corpus import write_list
from videorl.narrate.work import sha256
from videorl.prepare.record import Shard
from videorl.registry import UserError

MARK = "rephrase.json"
KEY = "--model"
LONGEST = 64  # tokens of an answer
TAG = re.compile(r"(#\w+\s+)?(.*)", re.DOTALL)  # Ego4D's "#C C opens the door": who acts, then the sentence
PROMPTS = {
    "text to text": "paraphrase: {}",
    "chat": "Say the sentence in other words and keep its meaning. Answer with the new sentence alone: {}",
    "plain": "{} In other words:",
}


class Rephraser:
    """A model that writes `top` texts of each text, in its own type of numbers. Raises `UserError`.

    `source`: folder, or hub:NAME. `prompt`: what it is told, {} stands for the text; empty: the one for its kind.
    """

    def __init__(self, source: str, top: int, prompt: str, device: torch.device):
        try:
            from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
        except ImportError:
            raise UserError("rephrasing needs transformers, which is not here: pip install 'videorl[text]'") from None
        config = pretrained(AutoConfig, source, KEY, "t5-base")
        self.answers = bool(config.is_encoder_decoder)  # else it goes on with what it is told
        kind = AutoModelForSeq2SeqLM if self.answers else AutoModelForCausalLM
        self.model = pretrained(kind, source, KEY, "t5-base", dtype="auto").eval().to(device)
        self.tokens = from_transformers(source, KEY)
        self.tokens.padding_side = "right" if self.answers else "left"
        if self.tokens.pad_token_id is None:
            self.tokens.pad_token = self.tokens.eos_token
        self.chats = not self.answers and bool(self.tokens.chat_template)
        self.prompt = prompt or PROMPTS["text to text" if self.answers else "chat" if self.chats else "plain"]
        if "{}" not in self.prompt:
            raise UserError(f"--prompt {self.prompt!r}: expected a text with {{}} where the sentence goes")
        self.top, self.places = top, getattr(config, "max_position_embeddings", None) or 10**9

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """Up to `top` other texts of each, the best first: the likeliest of a beam search of twice the width."""
        parted = [TAG.fullmatch(text.strip()).groups(default="") for text in texts]
        prompts = [self._told(sentence) for _, sentence in parted]
        short = [k for k, ids in enumerate(prompts) if len(ids) + (0 if self.answers else LONGEST) <= self.places]
        found = dict(zip(short, self._written([prompts[k] for k in short]) if short else ()))
        return [
            others(text, [tag + answer for answer in found.get(k, ()) if answer], self.top)
            for k, (text, (tag, _)) in enumerate(zip(texts, parted))
        ]

    def _told(self, sentence: str) -> list[int]:
        prompt = self.prompt.replace("{}", sentence)
        if not self.chats:
            return self.tokens(prompt)["input_ids"]
        talk = [{"role": "user", "content": prompt}]
        text = self.tokens.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        return self.tokens(text, add_special_tokens=False)["input_ids"]

    def _written(self, prompts: Sequence[list[int]]) -> list[list[str]]:
        batch = self.tokens.pad({"input_ids": list(prompts)}, return_tensors="pt").to(self.model.device)
        width, settings = 2 * self.top, {"pad_token_id": self.tokens.pad_token_id, "max_new_tokens": LONGEST}
        with torch.inference_mode():
            ids = self.model.generate(
                **{name: batch[name] for name in ("input_ids", "attention_mask")},
                **{"do_sample": False, "num_beams": width, "num_return_sequences": width, **settings},
            )
        first = 0 if self.answers else batch["input_ids"].shape[1]
        answers = list(map(cleaned, self.tokens.batch_decode(ids[:, first:], skip_special_tokens=True)))
        return [answers[k : k + width] for k in range(0, len(answers), width)]


def cleaned(answer: str) -> str:
    """The first line of an answer that says something, without quotation marks around it."""
    lines = (line.strip().strip("\"“”'`").strip() for line in answer.splitlines())
    return next(filter(None, lines), "")


def others(text: str, answers: Sequence[str], top: int) -> list[str]:
    """The first `top` answers that say something, are no copies of the text and of none before them.

    Copies may differ in case, spaces and punctuation.
    """
    found, said = [], {_words(text), ()}
    for answer in answers:
        if _words(answer) not in said:
            said.add(_words(answer))
            found.append(answer)
    return found[:top]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


class Rephrasing:
    """The texts of a list, each once however often it is said, and `file`, the list with those of `load()` instead.

    Raises `UserError` for what a narrator wrote.
    """

    def __init__(self, rows: Narrations, batch: int, load: Callable[[], Rephraser], file: Path):
        if any(rows[i].pseudo for i in range(len(rows))):
            raise UserError("--metadata: expected what people said, found rows of a narrator; name another list")
        self.rows, self.load, self.file = rows, load, file
        self.texts = list(dict.fromkeys(text for i in range(len(rows)) for text in rows[i].texts))
        self.groups = in_batches(len(self.texts), batch)

    def fill(self, shard: Shard) -> parts.Places:
        """Rephrases this shard's batches; where the finished ones of all are. Raises `UserError` as `parts.fill`."""
        rephraser = self.load()
        told = {"weights": fingerprint(rephraser.model), "prompt": rephraser.prompt, "top": rephraser.top}
        settings = {**told, "list": self.rows.fingerprint, "batches": sha256(self.groups)}

        def make(numbers: Sequence[int]) -> Iterator[list[list[str]]]:
            with shown(sum(len(self.groups[k]) for k in numbers), "rephrasing", "text") as bar:
                for k in numbers:
                    yield rephraser([self.texts[i] for i in self.groups[k]])
                    bar.update(len(self.groups[k]))

        return parts.fill(self.file.parent, settings, MARK, "texts", shard, len(self.groups), make)

    def write(self, places: parts.Places) -> dict[str, int]:
        """Writes the list: rows (video, start, end, [texts]), of which those without other words keep their own.

        Says how many `rows`, and how many `kept`.
        """
        found, listed, kept = dict(zip(self.texts, parts.rows(places), strict=True)), [], 0
        for row in map(self.rows.__getitem__, range(len(self.rows))):
            texts = list(dict.fromkeys(text for own in row.texts for text in found[own]))
            kept += not texts
            listed.append((row.video, row.start, row.end, texts or list(row.texts)))
        with parts.finishing(self.file.parent):
            write_list(self.file, listed)
        return {"rows": len(listed), "kept": kept}
