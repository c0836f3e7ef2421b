"""Long toy videos: what is told is shown at the time that the annotations say, late or early by one lag."""

import json

import av
import numpy as np
import pytest

from videorl.align import subtitles
from videorl.data.shards import Sharded, read_meta
from videorl.toy import long
from videorl.toy.long import JITTER, LAG, video
from videorl.toy.narrated import COLOUR_WORDS, DIRECTION_WORDS, OFF_TOPIC, PACE_WORDS, words

VIDEOS = [video(0, "train", k) for k in range(60)]


def seconds(told) -> tuple[float, float]:
    return told.caption.start, told.caption.end


def fits(text: str, shot) -> bool:
    said = set(text.split())
    pace, direction = shot.motion.split("_")
    facts = (COLOUR_WORDS[shot.scene.colour], PACE_WORDS[pace], DIRECTION_WORDS[direction])
    return all(said & set(group) for group in facts)


def test_each_thing_comes_once_and_is_told_of_truly():
    for own in VIDEOS:
        kinds = [(shot.scene.colour, shot.motion) for shot in own.shots]
        assert len({*kinds}) == len(kinds)
        for told in own.told:
            matching = [k for k, shot in enumerate(own.shots) if fits(told.caption.text, shot)]
            assert matching == ([told.shot] if told.shot >= 0 else [])
            assert (told.shot < 0) == (told.caption.text in OFF_TOPIC)


def test_a_narrator_is_late_by_one_lag():
    lags = []
    for own in VIDEOS:
        inside = [t for t in own.told if t.shot >= 0 and 8 < t.caption.start < own.times[-1] - 12]  # not moved into it
        late = [np.mean(seconds(t)) - np.mean(own.times[t.shot : t.shot + 2]) for t in inside]
        if len(late) > 2:
            assert np.ptp(late) <= 2 * JITTER + 1e-6
            lags.append(np.mean(late))
    assert max(np.abs(lags)) <= LAG + JITTER
    assert np.std(lags) > LAG / 3


def test_features_of_the_same_thing_are_near_each_other(tmp_path):
    videos = {f"train_{k:05d}": own for k, own in enumerate(VIDEOS[:8])}
    long._write_features(tmp_path, 0, videos | {"val_00000": VIDEOS[9]})
    shard = Sharded(tmp_path / "train_0")
    assert read_meta(tmp_path / "train_meta.pkl") == {0: [*videos]}
    same, other = [], []
    for k, own in enumerate(videos.values()):
        assert len(shard[k]) == int(np.ceil(own.times[-1]))
        rows = shard[k].astype(float)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-2)
        numbers = np.searchsorted(own.times, np.arange(len(rows)) + 0.5) - 1
        cosines, together = rows @ rows.T, numbers[:, None] == numbers
        same += cosines[together & ~np.eye(len(rows), dtype=bool)].tolist()
        other += cosines[~together].tolist()
    assert np.mean(same) > np.mean(other) + 0.2


def test_files_have_the_published_layouts(tmp_path, monkeypatch):
    monkeypatch.setattr(long, "VIDEOS", {"train": 1, "val": 1})
    out = tmp_path / "set"
    long.make_set(out, videos=1)
    own = video(0, "val", 0)
    with av.open(str(out / "videos/val/val_00000.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == round(own.times[-1] * 10)
    said = json.loads((out / "captions.json").read_text())
    assert said.keys() == {"train_00000", "val_00000"}
    assert said["val_00000"]["text"] == [told.caption.text for told in own.told]
    (rows,) = json.loads((out / "htm_align.json").read_text()).values()
    for (shown, start, end, text), told in zip(rows, own.told, strict=True):
        assert (shown, text) == (told.shot >= 0, told.caption.text)
        assert not shown or (start, end) == own.times[told.shot : told.shot + 2]
    steps = json.loads((out / "youcook2.json").read_text())["database"]["val_00000"]["annotations"]
    assert [step["segment"] for step in steps] == sorted([start, end] for shown, start, end, _ in rows if shown)
    read = subtitles.read(out / "srt/val_00000.srt")
    assert [caption.text for caption in read] == [told.caption.text for told in own.told]
    assert np.allclose([c[:2] for c in read], [seconds(told) for told in own.told], atol=1e-3)
    assert (out / "vocab.txt").read_text().split() == [*long.MARKS, *words()]
    with pytest.raises(Exception, match="complete toy set"):
        long.make_set(out, seed=1, videos=1)
