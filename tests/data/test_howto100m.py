"""HowTo100M against the golden cases of MIL-NCE, and what it does with files that are wrong."""

import hashlib
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.narrated import FOLDER, copy_to, howto100m, spec
from videorl import config
from videorl.data.howto100m import HowTo100M, draw, nearest_captions
from videorl.engine import build
from videorl.loading.pool import Loader, Workers
from videorl.loading.quarantine import Quarantine
from videorl.loading.worker import Job
from videorl.registry import UserError
from videorl.spec import NAMES
from videorl.video.errors import VideoError

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case, unpack_frames  # noqa: E402

CLIPS = load_case(GOLDEN / "data/howto100m_train_clips.pt")
PAIRS = list(zip(CLIPS["inputs"]["cases"], CLIPS["expected"]["cases"]))
NEAREST = load_case(GOLDEN / "data/howto100m_nearest_captions.pt")


def digest(video: torch.Tensor) -> str:
    """Hash of a clip [T, 3, S, S] in the order of the golden cases, [3, T, S, S]."""
    return hashlib.sha256(video.transpose(0, 1).contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(("given", "expected"), PAIRS, ids=range(len(PAIRS)))
def test_a_sample_is_the_published_one(monkeypatch, given, expected):
    monkeypatch.setattr(HowTo100M, "_random", lambda self, i, copy: random.Random(given["python_seed"]))
    keys = {k: given[k] for k in ("num_candidates", "crop_only", "center_crop")}
    (item,) = howto100m(of=spec(flip=given["random_flip"]), **keys)[given["index"]]
    four = item["video"][expected["clip"]["frames"]].transpose(0, 1)
    assert torch.equal(four, unpack_frames(expected["clip"]["pixels"]))
    assert digest(item["video"]) == expected["clip"]["sha256"]
    tokens = expected["tokens"]
    assert torch.equal(item["text"], tokens if tokens.ndim == 2 else tokens[None])


class Recorder(random.Random):
    """Writes down what it is asked for and what it says."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.calls = []

    def randint(self, a, b):
        self.calls.append(["randint", a, b, super().randint(a, b)])
        return self.calls[-1][-1]

    def uniform(self, a, b):
        self.calls.append(["uniform", a, b, super().uniform(a, b)])
        return self.calls[-1][-1]


@pytest.mark.parametrize(("given", "expected"), PAIRS, ids=range(len(PAIRS)))
def test_draws_come_in_the_published_order(given, expected):
    captions = howto100m().captions.of(Path(given["video"]).stem)
    rng = Recorder(given["python_seed"])
    settings = {"min_time": 5.0, "seconds": 3.2, "center": given["center_crop"], "flip": given["random_flip"]}
    drawn = draw(rng, captions.starts, captions.ends, **settings)
    assert rng.calls == [list(call) for call in expected["random_calls"]]
    assert (drawn.caption, drawn.start, drawn.flip) == tuple(
        expected[k] for k in ("caption", "start_second", "flipped")
    )


def test_a_short_caption_is_widened_and_a_clip_stays_in_a_long_one():
    class Last(random.Random):
        def randint(self, a, b):
            return b

    settings = {"min_time": 5.0, "seconds": 3.2, "center": True, "flip": False}
    starts = lambda start, end: draw(Last(), [start], [end], **settings).start  # noqa: E731
    assert starts(10.0, 11.0) == 9, "8 to 13.0, of which 3.2 s fit from 9 on"
    assert starts(0.2, 0.4) == 1, "0 to 5"
    assert starts(10.9, 30.9) == 26


@pytest.mark.parametrize("table", NEAREST["inputs"]["tables"])
def test_nearest_captions(table):
    starts, ends = zip(*NEAREST["inputs"]["tables"][table])
    for count, firsts in NEAREST["expected"][table].items():
        for caption, first in enumerate(firsts):
            expected = np.clip(np.arange(first, first + int(count)), 0, len(starts) - 1)
            assert nearest_captions(starts, ends, caption, int(count)).tolist() == expected.tolist()


def fingerprint_of(items: list[dict]) -> list:
    return [(digest(item["video"]), item["text"].tolist(), int(item["index"]), int(item["view"])) for item in items]


def test_a_sample_depends_on_seed_epoch_and_index_only():
    one, other = howto100m(), pickle.loads(pickle.dumps(howto100m()))
    first = [fingerprint_of(one[i]) for i in (0, 1)]
    assert first == [fingerprint_of(other[i]) for i in (1, 0)][::-1]
    clips = set()
    for epoch in range(4):
        one.epoch = epoch
        clips.add(str(fingerprint_of(one[0])))
    assert len(clips) == 4
    assert fingerprint_of(howto100m(of=spec(seed=7))[0]) not in [first[0]]


def test_copies_are_clips_of_their_own():
    items = howto100m(of=spec(copies=3))[0]
    assert [int(item["view"]) for item in items] == [0, 1, 2]
    assert len({digest(item["video"]) for item in items}) == 3


def test_names_of_the_batch():
    item = howto100m()[0][0]
    assert set(item) <= set(NAMES)
    assert (item["video"].dtype, item["text"].dtype) == (torch.uint8, torch.int64)
    assert (item["video"].shape, item["text"].shape) == ((16, 3, 48, 48), (4, 20))


def test_half_of_the_clips_are_mirrored():
    data = howto100m(center_crop=True)
    plain = howto100m(of=spec(flip=False), center_crop=True)
    mirrored = 0
    for epoch in range(12):
        data.epoch = plain.epoch = epoch
        (a,), (b,) = data[1], plain[1]
        mirrored += not torch.equal(a["video"], b["video"])
    assert 2 <= mirrored <= 10


# ---- files that are wrong --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    return copy_to(tmp_path / "howto100m")


def captions_are(folder: Path, text: str) -> None:
    (folder / "captions/vidA.csv").write_text(text)


def error_of(folder: Path, i: int = 0) -> VideoError:
    with pytest.raises(VideoError) as error:
        howto100m(folder)[i]
    return error.value


def test_a_missing_video(folder):
    (folder / "videos/vidA.mp4").unlink()
    error = error_of(folder)
    assert (error.stage, error.reason) == ("open", "No such file or directory")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column start, end, text; expected start,end,text, found an empty file"),
        ("start,end,text\n", "no captions"),
        ("start,end\n0,1\n", "no column text; expected start,end,text, found start,end"),
        ("start,end,text\n0,5,fine\n1,soon,cut\n", "caption 1: 'soon' is no time in seconds"),
        ("start,end,text\n0,nan,cut\n", "caption 0: 'nan' is no time in seconds"),
        ("start,end,text\n0,5\n", "line 2: 2 cells, expected 3"),
        (None, "No such file or directory"),
    ],
)
def test_captions_that_cannot_be_read(folder, text, said):
    captions_are(folder, text) if text is not None else (folder / "captions/vidA.csv").unlink()
    error = error_of(folder)
    assert (error.stage, error.reason) == ("index", f"captions vidA.csv: {said}")


def test_a_caption_past_the_end_of_its_video(folder):
    captions_are(folder, "start,end,text\n500,505,cut the tomato\n")
    error = error_of(folder)
    assert error.stage == "decode"
    assert "it ends before" in error.reason


@pytest.mark.parametrize("cell", ["", "NaN", "NULL"])
def test_a_caption_without_text_is_the_word_nan(folder, cell):
    np.save(folder / "dict.npy", np.array(["cut", "nan"]))
    captions_are(folder, f"start,end,text\n0,5,{cell}\n")
    assert howto100m(folder)[0][0]["text"][:, :2].tolist() == [[2, 0]] * 4


def test_a_caption_of_unknown_words_is_all_zeros(folder):
    captions_are(folder, "start,end,text\n0,5,qqq Zzz\n")
    item = howto100m(folder)[0][0]
    assert not item["text"].any()
    assert item["video"].any()


def test_a_video_of_fewer_captions_than_candidates_repeats_them(folder):
    captions_are(folder, "start,end,text\n0,5,cut\n")
    assert howto100m(folder)[0][0]["text"][:, 0].tolist() == [3, 3, 3, 3]


def test_captions_go_by_the_path_up_to_its_first_dot(folder):
    (folder / "videos/vidA.mp4").rename(folder / "videos/vidA.f137.mp4")
    (folder / "train.csv").write_text("video_path\nvidA.f137.mp4\n")
    assert howto100m(folder)[0][0]["video"].any()


def test_what_cannot_be_read_goes_into_quarantine_and_another_takes_its_place(folder):
    (folder / "videos/vidA.mp4").unlink()
    data = howto100m(folder)
    quarantine = Quarantine("howto100m/train", len(data), 0.6)
    (batch,) = Loader(data, Workers(), quarantine).run([Job(0, 0, [0, 1])])
    assert batch["index"].tolist() == [1, 1]
    (row,) = quarantine.rows.values()
    assert row["path"] == str(folder / "videos/vidA.mp4")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"video_list": ""}, "HOWTO100M.VIDEO_LIST is empty"),
        ({"video_list": "none.csv"}, "HOWTO100M.VIDEO_LIST none.csv: No such file or directory"),
        ({"video_list": str(FOLDER / "hmdb.csv")}, "no column video_path; expected video_path, found video_id,label"),
        ({"video_root": "nowhere"}, "HOWTO100M.VIDEO_ROOT 'nowhere' is no folder"),
        ({"caption_root": ""}, "HOWTO100M.CAPTION_ROOT '' is no folder"),
        ({"caption_index": "none.captions"}, "none.captions.json: No such file"),
    ],
)
def test_mistakes_in_the_settings(keys, said):
    with pytest.raises(UserError) as error:
        howto100m(**keys)
    assert said in str(error.value)


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/passwd", "http://host/a.mp4", "concat://a", "", "a\0b"])
def test_paths_stay_in_their_folder(folder, path):
    (folder / "train.csv").write_text(f'video_path\nvidA.mp4\n"{path}"\n')
    with pytest.raises(UserError) as error:
        howto100m(folder)
    assert "row 2" in str(error.value) or "NUL" in str(error.value)


def test_there_is_no_other_split():
    with pytest.raises(UserError, match="no split 'val'"):
        HowTo100M(spec(), "val")


def test_keys_come_from_the_config():
    """The published command line, as far as data go."""
    words = {
        "TRAIN.DATASET": "howto100m",
        "HOWTO100M.VIDEO_LIST": FOLDER / "train.csv",
        "HOWTO100M.CAPTION_ROOT": FOLDER / "captions",
        "HOWTO100M.VIDEO_ROOT": FOLDER / "videos",
        "HOWTO100M.NUM_CANDIDATES": 2,
        "TEXT.DICT": FOLDER / "dict.npy",
        "DATA.NUM_FRAMES": 16,
        "DATA.SAMPLING_RATE": 1,
        "DATA.TARGET_FPS": 5,
        "DATA.TRAIN_CROP_SIZE": 48,
    }
    cfg = config.load([], [str(word) for pair in words.items() for word in pair])
    data = build.dataset(cfg, "howto100m", "train")
    assert data[0][0]["text"].shape == (2, cfg.TEXT.MAX_WORDS)
    assert data.fingerprint == howto100m().fingerprint
