"""Narrates clips in batches that are the same however the work is shared: the last bits of a text depend on them."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from videorl.features.each import read_each
from videorl.loading.pool import Loader
from videorl.narrate import parts
from videorl.narrate.captioner import Captioner
from videorl.prepare.record import Shard

MARK = "narrate.json"


def narrate(
    clips,
    groups: Sequence[Sequence[int]],
    captioner: Captioner,
    out: Path,
    shard: Shard,
    make_loader: Callable[[object], Loader],
    settings: Mapping,
) -> parts.Places:
    """Narrates this shard's batches, `groups` of the samples of `clips`, and says where the finished ones of all are.

    A row is the facts of a clip with what `Captioner.captions` gives, or with the reason why it is `bad`. `settings`:
    what the clips depend on; with the model and its sampling they mark the folder `out`. Raises `UserError` as
    `parts.fill`.
    """
    settings = {
        **{"model": captioner.name, "weights": captioner.fingerprint(), "sampling": asdict(captioner.sampling)},
        **{"batches": sha256([list(group) for group in groups]), **settings},
    }

    def write(batch: dict) -> dict[int, list[dict]]:
        samples = dict.fromkeys(batch["index"].tolist())
        facts = [fact for i in samples for fact in clips.facts(i)]
        texts = captioner.captions(batch["video"], [fact["number"] for fact in facts])
        pictures = [{"picture": picture} for picture in batch.get("picture", ())] or [{}] * len(facts)
        rows = [fact | text | picture for fact, text, picture in zip(facts, texts, pictures, strict=True)]
        return {i: [row for row, own in zip(rows, batch["index"].tolist()) if own == i] for i in samples}

    def make(numbers: Sequence[int]) -> Iterator[list[dict]]:
        own = [list(groups[k]) for k in numbers]
        with contextlib.closing(make_loader(clips)) as loader:
            found = read_each(loader, own, write, "narrating", "clip", clips.count)
            with contextlib.closing(found):
                for group in own:
                    yield [row for i in group for row in _rows(clips, i, next(found))]

    return parts.fill(out, settings, MARK, "narrations", shard, len(groups), make)


def _rows(clips, i: int, found: list[dict] | str) -> list[dict]:
    return [fact | {"bad": found} for fact in clips.facts(i)] if isinstance(found, str) else found


def sha256(content) -> str:
    """Of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
