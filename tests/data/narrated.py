"""The tiny videos, captions and lists of the golden cases as data sets, and copies of them to spoil."""

import shutil
from dataclasses import replace
from pathlib import Path

from videorl.data.howto100m import HowTo100M
from videorl.spec import Augment, Clip, Reading, Spec, Text, Views

FOLDER = Path(__file__).parents[1] / "golden/data/howto100m"


def spec(clips: int = 1, crops: int = 1, *, seed: int = 0, flip: bool = True, copies: int = 1, **reading) -> Spec:
    """16 frames of 48 pixels, 5 frames a second."""
    return Spec(
        Clip(16, 1, 48, 48, fps=5.0),
        augment=Augment(flip=flip, copies=copies),
        views=Views(clips, crops),
        reading=Reading(**reading),
        seed=seed,
    )


def reading_words_of(folder: Path, of: Spec) -> Spec:
    """The spec with the dictionary of `folder`."""
    return replace(of, text=Text(dictionary=str(folder / "dict.npy")))


def howto100m(folder: Path = FOLDER, of: Spec | None = None, **keys) -> HowTo100M:
    """The training set of `folder`; keys override those of the published layout."""
    usual = {
        "video_list": str(folder / "train.csv"),
        "video_root": str(folder / "videos"),
        "caption_root": str(folder / "captions"),
    }
    return HowTo100M(reading_words_of(folder, of or spec()), "train", **usual | keys)


def copy_to(folder: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
