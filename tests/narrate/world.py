"""A small narrator with random weights, and first-person toy videos with a list."""

from pathlib import Path

import pytest
import torch

from videorl import checkpoint, config
from videorl.engine import build
from videorl.toy import egocentric

ROOT = Path(__file__).parents[2]
YAML = str(ROOT / "configs/toy/narrator.yaml")
VIDEOS = 2


def code(main, words) -> int:
    """The exit code of a tool."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return end.code
    return 0


def toy(folder: Path) -> Path:
    """Toy videos of Ego4D in chunks, with their lists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egocentric, "VIDEOS", {"ego4d": VIDEOS, "ego4d_val": 6, "epic": 9})
        egocentric.make_set(folder, videos=VIDEOS)
    return folder


def narrator(folder: Path, toy: Path) -> list[str]:
    """The words that name a narrator of random weights, which say something else of each clip."""
    words = {
        **{"NUM_GPUS": 0, "DATA_LOADER.NUM_WORKERS": 0, "TEST.BATCH_SIZE": 5, "TEXT.TOKENIZER": toy / "tokenizer"},
        **{"EVALS.captions.FACTS": "", "EVALS.captions.TEMPERATURE": 1.0, "EGO4D.ROOT": toy / "videos/ego4d"},
    }
    words = [str(word) for pair in words.items() for word in pair]
    model = build.model(config.load([YAML], words))
    torch.manual_seed(1)
    for value in model.parameters():
        value.data += 0.2 * torch.randn_like(value)
    checkpoint.save(folder / "narrator.pyth", {"model_state": model.state_dict()})
    return ["--cfg", YAML, *words, "--checkpoint", str(folder / "narrator.pyth")]


def content(folder: Path) -> dict[str, bytes]:
    """All files that a run leaves, but its parts."""
    files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith(".parts")}
