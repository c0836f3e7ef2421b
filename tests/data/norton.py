"""Files of MMPT's layout, the published ones of the golden cases and tiny ones that a test makes."""

import os
from pathlib import Path

import numpy as np

from videorl.data.shards import meta_bytes, starts_of
from videorl.spec import Augment, Clip, Spec, Text

GOLDEN = Path(__file__).parents[1] / "golden" / "norton"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]


def spec(vocabulary: Path, words=WORDS, *, length: int = 31, copies: int = 16, seed: int = 0) -> Spec:
    """A spec whose tokenizer has these words."""
    vocabulary.write_text("\n".join(words))
    return Spec(Clip(2, 1, 4, 4), text=Text(str(vocabulary), "", length), augment=Augment(copies=copies), seed=seed)


def published(folder: Path) -> dict:
    """Keys of the data set for the published shards, of which a part is here: tr000 … tr023."""
    for file in (GOLDEN / "shards").iterdir():
        os.symlink(file, folder / file.name)
    names = [f"tr{k:03d}" for k in range(24)]
    (folder / "train_meta.pkl").write_bytes(meta_bytes({0: names[:20], 1: names[20:]}))
    return {"root": str(folder), "captions": f"{folder}/cap.tiny."}


def write(folder: Path, videos: list[dict], split: str = "train", shard: int = 3) -> dict:
    """Writes videos {features [n, F], tokens: list of lists, times: list of pairs} in shards of so many videos."""
    folder.mkdir(exist_ok=True)
    meta = {}
    for k in range(0, len(videos), shard):
        part, number = videos[k : k + shard], k // shard
        meta[number] = [f"v{k + j}" for j in range(len(part))]
        kinds = {
            f"{split}_{number}": [np.asarray(v["features"], np.float16) for v in part],
            f"cap.{split}_{number}.caps_ids": [rows_of(v["tokens"]) for v in part],
            f"cap.{split}_{number}.startends": [np.array(v["times"], np.float32).reshape(-1, 2) for v in part],
        }
        for name, items in kinds.items():
            np.save(folder / f"{name}_data.npy", np.concatenate(items))
            np.save(folder / f"{name}_starts.npy", starts_of([len(item) for item in items]))
    (folder / f"{split}_meta.pkl").write_bytes(meta_bytes(meta))
    return {"root": str(folder), "captions": f"{folder}/cap."}


def rows_of(tokens: list[list[int]], length: int = 6) -> np.ndarray:
    rows = np.full((len(tokens), length), -1, np.int32)
    for row, own in zip(rows, tokens):
        row[: len(own)] = own
    return rows


def video(seconds: int = 10, seed: int = 0, **more) -> dict:
    """A video of random features with a caption of three tokens every two seconds."""
    draw = np.random.default_rng(seed)
    starts = np.arange(0.0, seconds - 1, 2.0)
    made = {
        "features": draw.normal(size=(seconds, 8)),
        "tokens": [draw.integers(5, len(WORDS), 3).tolist() for _ in starts],
        "times": [(start, start + 1.5) for start in starts],
    }
    return made | more
