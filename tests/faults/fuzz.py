"""Damages good videos at random and reads them: `python tests/faults/fuzz.py --count 2000 --backend decord`.

Says how many gave frames, how many a VideoError, and lists those that crashed, hung or ended otherwise, with the seed
that makes the file again (`--seed S --count 1 --keep FILE`).
"""

import argparse
import collections
import functools
import sys
import tempfile
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.guard import guarded, read
from tests.video.clips_on_disk import write_video

VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
GOOD = {
    "front.mp4": {"container_options": {"movflags": "faststart"}},
    "open.mp4": {"options": {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=10"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}},
    "vp9.webm": VP9,
    "h264.mkv": {},
    "h264.flv": {},
    "wmv2.wmv": {"codec": "wmv2"},
    "vp8.ogv": {"codec": "libvpx", "container": "ogg"},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


def good_files(folder: Path, frames: int = 30) -> list[bytes]:
    return [write_video(folder / name, range(frames), **keys).read_bytes() for name, keys in GOOD.items()]


def mutated(files: list[bytes], seed: int) -> bytes:
    """One of the files: bits flipped, bytes changed, a hole, a piece lost or doubled, or cut off; often its header."""
    rng = np.random.default_rng(seed)
    data = bytearray(files[seed % len(files)])
    end = len(data) if rng.random() < 0.5 else min(len(data), 2500)
    kind = rng.integers(7)
    start = int(rng.integers(end))
    size = int(rng.integers(1, 1 + min(len(data) - start, 4 * end // 10)))
    if kind < 3:
        for at in rng.integers(end, size=int(rng.integers(1, 41))):
            data[at] = int(rng.integers(256)) if kind else data[at] ^ (1 << int(rng.integers(8)))
    elif kind == 3:
        data[start : start + size] = bytes(size)
    elif kind == 4:
        del data[start : start + size]
    elif kind == 5:
        data[start:start] = data[start : start + size]
    else:
        del data[int(rng.integers(16, len(data))) :]
    return bytes(data)


def plans(count: int) -> list[list[int]]:
    """Frame numbers as training and testing ask for them."""
    spread = np.linspace(0, count - 1, 8).astype(int).tolist()
    return [spread, [count - 1, 0], list(range(count // 2, min(count, count // 2 + 6)))]


def outcome(seed: int, *, files: list[bytes], backend: str, path: Path) -> str:
    path.write_bytes(mutated(files, seed))
    found = read(path, backend, plans)
    if isinstance(found, str):
        return found
    return "frames" if any(not isinstance(frames, str) for frames in found) else "decode"


def fuzz(backend: str, count: int, folder: Path, first: int = 0) -> dict[int, str]:
    """Outcome of each seed: "frames", the stage of a VideoError, "crash: …", "hang" or "wrong: …"."""
    files = good_files(folder)
    act = functools.partial(outcome, files=files, backend=backend, path=folder / f"{backend}.mp4")
    seeds = range(first, first + count)
    return dict(zip(seeds, guarded(act, seeds), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="files")
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--backend", default="pyav", help="pyav, torchcodec or decord")
    parser.add_argument("--keep", type=Path, help="write the file of --seed there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.keep:
            args.keep.write_bytes(mutated(good_files(Path(folder)), args.seed))
        found = fuzz(args.backend, args.count, Path(folder), args.seed)
    print(args.backend, dict(collections.Counter(text.partition(":")[0] for text in found.values()).most_common()))
    for seed, text in found.items():
        if text.startswith(("crash", "hang", "wrong")):
            print(f"seed {seed}: {text}")


if __name__ == "__main__":
    main()
