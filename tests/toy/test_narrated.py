import csv
import filecmp
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl.data.captions import CaptionFiles
from videorl.data.howto100m import HowTo100M, draw, nearest_captions
from videorl.data.paired import HMDB51, MSRVTT, YouCook2
from videorl.data.text import split_words
from videorl.models.word2vec import word_table
from videorl.registry import UserError
from videorl.spec import Augment, Clip, Spec, Text, Views
from videorl.toy import narrated, scenes
from videorl.toy.narrated import ASIDES, COLOUR_WORDS, DIRECTION_WORDS, LAG, OFF_TOPIC, PACE_WORDS, SHAPE_WORDS

SECONDS = 1.6  # of a clip of 8 frames, 5 a second
NARRATED = [narrated.video(0, "howto100m", i) for i in range(100)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A set with few narrated videos."""
    out = tmp_path_factory.mktemp("narrated") / "set"
    narrated.make_set(out, videos=3)
    return out


def spec(clips: int = 1, dictionary: str = "") -> Spec:
    text = Text(dictionary=dictionary, length=8)
    return Spec(Clip(8, 1, 32, 32, fps=5.0), views=Views(clips, 1), augment=Augment(flip=False), text=text)


def ends(video) -> np.ndarray:
    return np.cumsum([shot.seconds for shot in video.shots])


def facts(text: str) -> tuple[str, ...]:
    """Colour, shape, direction and pace that a sentence tells."""
    tables = (COLOUR_WORDS, SHAPE_WORDS, DIRECTION_WORDS, PACE_WORDS)
    found = [[name for name, group in table.items() if set(group) & set(text.split())] for table in tables]
    assert all(len(names) == 1 for names in found), text
    return tuple(name for (name,) in found)


def shown(shot) -> tuple[str, ...]:
    pace, direction = shot.motion.split("_")
    return shot.scene.colour, shot.scene.shape, direction, pace


def on_topic(video) -> list:
    return [caption for caption in video.captions if caption.text not in OFF_TOPIC]


def test_all_sets_are_read_whole(root):
    dictionary = str(root / "dict.npy")
    howto = HowTo100M(
        spec(1, dictionary),
        "train",
        video_list=str(root / "howto100m.csv"),
        video_root=str(root / "videos/howto100m"),
        caption_root=str(root / "captions"),
    )
    kitchen, short, actions = (
        kind(
            spec(2, dictionary),
            "test",
            annotations=str(root / f"{name}.csv"),
            video_root=str(root / f"videos/{name}"),
        )
        for kind, name in ((YouCook2, "youcook2"), (MSRVTT, "msrvtt"), (HMDB51, "hmdb51"))
    )
    assert [len(howto), len(kitchen), len(short), len(actions)] == [3, 64, 64, 192]
    for dataset in (howto, kitchen, short, actions):
        for i in range(0, len(dataset), 7):
            for item in dataset[i]:
                assert item["video"].flatten(1).float().std(1).min() > 5  # no black frame
    assert actions.classes == tuple(sorted(narrated.CLASSES))


def test_hmdb_splits_take_turns(root):
    actions = HMDB51(spec(), "test", annotations=str(root / "hmdb51.csv"), video_root=str(root / "videos/hmdb51"))
    assert (np.sort(actions.splits, axis=1) == [1, 1, 2]).all()  # each clip tests one split and trains two
    for codes in actions.splits.T:
        assert set(Counter(actions.labels[codes == 2]).values()) == {narrated.CLIPS_PER_CLASS // 3}


def test_every_word_is_in_the_dictionary_and_every_word_of_it_is_used(root):
    words = np.load(root / "dict.npy").tolist()
    texts = [caption.text for video in NARRATED for caption in video.captions]
    for name in ("youcook2", "msrvtt"):
        column = "sentence" if name == "msrvtt" else "text"
        texts += [row[column] for row in csv.DictReader((root / f"{name}.csv").open())]
    spoken = [split_words(text) for text in texts]
    assert {word for text in spoken for word in text} == set(words)
    assert max(map(len, spoken)) <= 8
    assert 60 <= len(words) <= 100


def test_synonyms_are_near_each_other_in_the_word_table(root):
    words = np.load(root / "dict.npy").tolist()
    table = word_table(str(root / "word2vec.pth"), 0)
    assert len(table) == len(words) + 1
    assert not table[0].any()
    cosine = torch.corrcoef(table[1:])
    same = [(a, b) for group in narrated.SYNONYMS for a, b in pairwise(map(words.index, group))]
    near = torch.tensor([cosine[a, b] for a, b in same])
    others = cosine.fill_diagonal_(0).clone()
    for group in narrated.SYNONYMS:
        others[np.ix_(*[[words.index(word) for word in group]] * 2)] = 0
    assert near.min() > others.max()


def test_captions_tell_the_truth_about_a_shot_not_far_away():
    for video in NARRATED:
        stop = ends(video)
        middles = stop - [shot.seconds / 2 for shot in video.shots]
        told = {facts(c.text): (c.start + c.end) / 2 for c in on_topic(video)}
        assert set(told) == set(map(shown, video.shots))
        lags = np.array([told[shown(shot)] for shot in video.shots]) - middles
        inside = (middles + lags > narrated.SPOKEN[1] / 2) & (middles + lags < stop[-1] - narrated.TAIL - 0.02)
        assert np.abs(lags[inside]).max() <= LAG + 0.02
        assert len(video.captions) - len(video.shots) == round(ASIDES * len(video.shots))


def test_captions_come_by_time_and_every_clip_lies_in_the_video():
    """The bound for the published draw: a span of at least 5 seconds around a caption."""
    for number, video in enumerate(NARRATED):
        starts, stops = ([getattr(c, name) for c in video.captions] for name in ("start", "end"))
        assert starts == sorted(starts)
        assert all(0 <= a < b for a, b in zip(starts, stops, strict=True))
        rng, length = random.Random(number), ends(video)[-1]
        for _ in range(50):
            drawn = draw(rng, starts, stops, min_time=5.0, seconds=SECONDS, center=False, flip=False)
            assert drawn.start + SECONDS <= length


def fits(video, candidates: int) -> float:
    """How often one of so many nearest captions tells the shot in the middle of a random clip."""
    starts, stops = ([getattr(c, name) for c in video.captions] for name in ("start", "end"))
    rng, found = random.Random(0), []
    for _ in range(50):
        drawn = draw(rng, starts, stops, min_time=5.0, seconds=SECONDS, center=False, flip=False)
        shot = video.shots[np.searchsorted(ends(video), drawn.start + SECONDS / 2)]
        near = nearest_captions(starts, stops, drawn.caption, candidates)
        texts = {video.captions[k].text for k in near} - set(OFF_TOPIC)
        found.append(shown(shot) in map(facts, texts))
    return np.mean(found)


def test_one_caption_mostly_does_not_fit_but_one_of_four_does():
    assert np.mean([fits(video, 1) for video in NARRATED]) < 0.5
    assert np.mean([fits(video, 4) for video in NARRATED]) > 0.85


@pytest.mark.parametrize(("name", "videos"), [("youcook2", 8), ("msrvtt", 64)])
def test_each_test_set_has_64_sentences_that_tell_the_truth_each_another_colour_and_motion(name, videos):
    made = [narrated.video(0, name, i) for i in range(videos)]
    told = [facts(caption.text) for video in made for caption in video.captions]
    assert told == [shown(shot) for video in made for shot in video.shots]
    assert len({(colour, *motion) for colour, _, *motion in told}) == len(told) == 64
    for video in made:
        assert [c.end for c in video.captions] == pytest.approx(ends(video))


def test_sets_share_no_scene():
    names = {"howto100m": 100, "youcook2": 8, "msrvtt": 64, "hmdb51": 192}
    shots = [shot for name, n in names.items() for i in range(n) for shot in narrated.video(0, name, i).shots]
    assert len({shot.scene.texture for shot in shots}) == len(shots)


def test_caption_files_hold_the_captions(root):
    captions = CaptionFiles(root / "captions").of("howto100m_00001")
    expected = narrated.video(0, "howto100m", 1).captions
    assert captions.texts == [c.text for c in expected]
    assert captions.starts.tolist() == [c.start for c in expected]
    assert captions.ends.tolist() == [c.end for c in expected]


def test_same_seed_gives_same_bytes(root, tmp_path):
    narrated.make_set(tmp_path / "again", videos=3, workers=2)
    files = sorted(file.relative_to(root) for file in root.rglob("*") if file.is_file())
    assert len(files) == 3 + 8 + 64 + 192 + 3 + 7
    assert filecmp.cmpfiles(root, tmp_path / "again", files, shallow=False) == (files, [], [])
    assert narrated.video(1, "howto100m", 0) != narrated.video(0, "howto100m", 0)


def test_a_complete_set_is_left_alone_and_another_is_refused(root):
    mark = (root / scenes.MARK).stat().st_mtime_ns
    assert "already complete" in narrated.make_set(root, videos=3)
    assert (root / scenes.MARK).stat().st_mtime_ns == mark
    assert json.loads((root / scenes.MARK).read_text())["kind"] == "narrated"
    with pytest.raises(UserError, match="seed 0, asked for 1"):
        narrated.make_set(root, seed=1, videos=3)
    with pytest.raises(UserError, match="kind narrated, asked for motion"):
        scenes.make_set(root, counts={"train": 1})
