"""The files of finished features, in one of three layouts, and how they are read again.

A shard of many videos is `shard_00000.NAME.npy` or `shard_00000.safetensors`: the rows of all its windows end to end,
and their `times` float64 [rows, 2], first and last second. `shard_00000.json`, written last, lists its videos in order
with the number of windows of each, those that are bad with the reason, and its files with their SHA-256. Layout mmpt:
`SPLIT_0_data.npy` and `SPLIT_0_starts.npy` (see `data/shards.py`), without times: a window begins every stride.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videorl import atomic
from videorl.data.shards import meta_bytes, starts_of
from videorl.features.draft import Draft, Kind
from videorl.registry import UserError

LAYOUTS = ("npy", "safetensors", "mmpt")
TIMES = "times"
INDEX = "index.json"
SAFETENSORS = {"float16": "F16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class Store:
    """The folder of features. `split`: of layout mmpt, the beginning of its files' names."""

    out: Path
    layout: str
    split: str = ""

    def check(self, features: Sequence[str], paths: Sequence[str]) -> None:
        """Raises `UserError` for what the layout cannot hold."""
        if self.layout != "mmpt":
            return
        if len(features) > 1:
            raise UserError(f"layout mmpt holds one feature, found {','.join(features)}; choose another --layout")
        stems: dict[str, str] = {}
        for path in paths:
            if (other := stems.setdefault(Path(path).stem, path)) != path:
                raise UserError(
                    f"{other} and {path} have one name in layout mmpt; rename one, or choose another --layout"
                )

    def index_of(self, shard: int) -> Path:
        """The mark of a finished shard."""
        return self.out / f"shard_{shard:05d}.json"

    def is_finished(self, shard: int) -> bool:
        """Whether the shard and all its files are there, by their size."""
        index = read_json(self.index_of(shard))
        return index is not None and all(_size(self.out / name) == f["bytes"] for name, f in index["files"].items())

    def publish(self, shard: int, draft: Draft) -> None:
        """Makes the files of a shard of a draft whose videos are all there, and its index."""
        rows = draft.rows_finished
        good = [video for video in draft.videos if "bad" not in video]
        files = {name: _write(self.out / name, *parts) for name, parts in self._files(shard, draft, rows, good)}
        arrays = {name: {"dtype": kind.dtype, "shape": [rows, *kind.shape]} for name, kind in draft.kinds.items()}
        bad = [video for video in draft.videos if "bad" in video]
        index = {"layout": self.layout, "videos": good, "bad": bad, "arrays": arrays, "files": files}
        atomic.write(self.index_of(shard), json.dumps(index, indent=1) + "\n")

    def _files(self, shard: int, draft: Draft, rows: int, good: Sequence[Mapping]) -> Iterator[tuple[str, tuple]]:
        """Name, beginning and files of rows of each file."""
        kinds = draft.kinds
        if self.layout == "npy":
            for name, kind in kinds.items():
                yield f"shard_{shard:05d}.{name}.npy", (_npy_head(kind, rows), [draft.file(name)])
        elif self.layout == "safetensors":
            yield f"shard_{shard:05d}.safetensors", (_safetensors_head(kinds, rows), [draft.file(n) for n in kinds])
        else:
            (name,) = (name for name in kinds if name != TIMES)
            starts = starts_of([video["windows"] for video in good])
            begin = io.BytesIO()
            np.save(begin, starts)
            yield f"{self.split}_{shard}_data.npy", (_npy_head(kinds[name], rows), [draft.file(name)])
            yield f"{self.split}_{shard}_starts.npy", (begin.getvalue(), [])

    def finish(self, shards: int) -> dict:
        """Where all shards are finished, what they hold in all, which `index.json` says; else an empty dict.

        Writes `quarantine.jsonl`, a line for each bad video, and in layout mmpt the meta file.
        """
        found = [read_json(self.index_of(shard)) for shard in range(shards)]
        if None in found:
            return {}
        bad = [row for index in found for row in index["bad"]]
        atomic.write(self.out / "quarantine.jsonl", "".join(json.dumps(row) + "\n" for row in bad))
        if self.layout == "mmpt":
            names = {k: [Path(video["path"]).stem for video in index["videos"]] for k, index in enumerate(found)}
            _write(self.out / f"{self.split}_meta.pkl", meta_bytes(names), [])
        videos = sum(len(index["videos"]) for index in found)
        windows = sum(video["windows"] for index in found for video in index["videos"])
        totals = {"layout": self.layout, "shards": shards, "videos": videos, "windows": windows, "bad": len(bad)}
        atomic.write(self.out / INDEX, json.dumps(totals, indent=1) + "\n")
        return totals


def _write(file: Path, head: bytes, rows: Sequence[Path]) -> dict:
    """Writes a file that appears whole or not at all: `head`, then the content of others."""
    digest = hashlib.sha256()
    with atomic.writing(file) as out:
        for source in (io.BytesIO(head), *(open(path, "rb") for path in rows)):  # noqa: SIM115
            with source:
                while part := source.read(1 << 22):
                    out.write(part)
                    digest.update(part)
        size = out.tell()
    return {"bytes": size, "sha256": digest.hexdigest()}


def _npy_head(kind: Kind, rows: int) -> bytes:
    head = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(kind.dtype))
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": (rows, *kind.shape)})
    return head.getvalue()


def _safetensors_head(kinds: Mapping[str, Kind], rows: int) -> bytes:
    """https://huggingface.co/docs/safetensors: length of the json, json, then all bytes."""
    entries, end = {}, 0
    for name, kind in kinds.items():
        begin, end = end, end + rows * kind.size
        dtype = SAFETENSORS[kind.dtype]
        entries[name] = {"dtype": dtype, "shape": [rows, *kind.shape], "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_json(file: Path) -> dict | None:
    """A json object that this tool wrote; None where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{file} is damaged; delete it: its shard is made again") from None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


# ---- reading ---------------------------------------------------------------------------------------------------------


class Features:
    """Finished features of a folder, of the layouts npy and safetensors, mapped into memory.

    `features[path]`: name -> array [windows, …] of a video, `times` among them. In layout mmpt: `data.shards.Sharded`.
    """

    def __init__(self, out: Path):
        totals = read_json(out / INDEX)
        if totals is None:
            raise UserError(f"{out / INDEX} does not exist: `videorl extract` writes it when all shards are finished")
        if totals["layout"] == "mmpt":
            raise UserError(
                f"{out}: expected layout npy or safetensors, found MMPT's; read it with data.shards.Sharded"
            )
        self.out, self.layout, self.places, self.maps = out, totals["layout"], {}, {}
        for shard in range(totals["shards"]):
            first = 0
            for video in read_json(Store(out, self.layout).index_of(shard))["videos"]:
                self.places[video["path"]] = (shard, first, first + video["windows"])
                first += video["windows"]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __getitem__(self, path: str) -> dict[str, np.ndarray]:
        shard, first, stop = self.places[path]
        if shard not in self.maps:
            self.maps[shard] = self._mapped(shard)
        return {name: array[first:stop] for name, array in self.maps[shard].items()}

    def _mapped(self, shard: int) -> dict:
        """Arrays, or what gives their rows as arrays, by name."""
        index = read_json(Store(self.out, self.layout).index_of(shard))
        if self.layout == "npy":
            files = {name: self.out / f"shard_{shard:05d}.{name}.npy" for name in index["arrays"]}
            return {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in files.items()}
        from safetensors import safe_open

        opened = safe_open(self.out / f"shard_{shard:05d}.safetensors", framework="np")
        return {name: opened.get_slice(name) for name in index["arrays"]}
