"""First-person toy videos: what is narrated happens there, questions have one answer, relevancies are EPIC's."""

import json
import pickle

import av
import numpy as np
import pytest

from videorl.cli import toy
from videorl.data.text import tokenizer
from videorl.metrics.captions import facts_of
from videorl.spec import Text
from videorl.toy import egocentric, narrated, scenes
from videorl.toy.egocentric import CHUNK_SECONDS, FPS, relevancy, rows


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("ego") / "set"
    counts = {"ego4d": 2, "ego4d_val": 6, "epic": 9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egocentric, "VIDEOS", counts)
        egocentric.make_set(out, videos=2)
    return out


def read(root, name):
    return pickle.loads((root / name).read_bytes())


def test_chunks_hold_the_whole_video(root):
    shots = egocentric.video(0, "ego4d", 1)
    found = 0
    for chunk in (root / "videos/ego4d/train-0001.mp4").iterdir():
        with av.open(str(chunk)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames == CHUNK_SECONDS * FPS or int(chunk.stem) == (found := max(found, int(chunk.stem)))
    assert found == int(sum(shot.event.end for shot in shots)) // CHUNK_SECONDS * CHUNK_SECONDS


def test_the_arm_reaches_in_from_behind():
    """Of all four directions; and what it moves goes from one half of the picture to the other."""
    seen = set()
    for shot in egocentric.video(0, "ego4d", 0):
        direction, axis = shot.event.motion, "yx".index(scenes.MOTIONS[shot.event.motion][0])
        arm = (egocentric.render(shot) == egocentric.SKIN).all(-1)[len(egocentric.render(shot)) // 2]  # [H, W]
        behind = 0 if direction in ("right", "down") else -1
        assert arm.take(behind, axis).any()
        assert not arm.take(-1 - behind, axis).any()
        ends = scenes.phases(shot.scene, [shot.event], np.array([0.0, shot.event.end]))[:, 1 - axis]
        assert (ends[0] < 0.5 < ends[1]) if behind == 0 else (ends[1] < 0.5 < ends[0])
        seen.add(direction)
    assert seen == set(scenes.DIRECTIONS)


def test_lists_have_the_published_layouts(root):
    people, part = read(root, "ego4d_train.pkl"), read(root, "ego4d_train.part.pkl")
    rephrased, narrated = read(root, "ego4d_train.rephraser.pkl"), read(root, "ego4d_train.narrator.pkl")
    assert [row[:3] for row in people] == [row[:3] for row in rephrased]
    assert {len(row) for row in narrated} == {5}
    assert {row[:3] for row in part} | {row[:3] for row in narrated} == {row[:3] for row in people}
    assert not {row[:3] for row in part} & {row[:3] for row in narrated}
    assert all(0 <= start < end for _, start, end, _ in people)


def test_the_narrator_is_wrong_about_a_fourth(root):
    told = {row[:3]: row[3] for row in read(root, "ego4d_train.pkl")}
    truth = {(f"train-{r.video:04d}", r.start, r.end): r.facts for r in rows(0, "ego4d", 2)}
    assert set(told) == set(truth)
    right = np.array(
        [[fits(text, truth[row[:3]]) for text in row[3]] for row in read(root, "ego4d_train.narrator.pkl")]
    )
    assert abs(right.mean() - egocentric.RIGHT) < 0.1
    assert all(fits(text, truth[key]) for key, text in told.items())


def test_the_tokenizer_knows_every_word_and_facts_json_what_it_means(root):
    tokenize = tokenizer(Text(str(root / "tokenizer"), length=12))
    meanings = json.loads((root / "facts.json").read_text())
    truth = {(f"train-{r.video:04d}", r.start, r.end): r.facts for r in rows(0, "ego4d", 2)}
    assert tokenize.start == tokenize.end == len(egocentric.words()) + 1
    for *key, text in read(root, "ego4d_train.pkl"):
        ids = tokenize([text])[0]
        assert ids.tolist().count(0) == 0  # <unk>
        assert tokenize.decode(ids.tolist()) == text
        assert tuple(facts_of(text, words)[0] for words in meanings.values()) == truth[tuple(key)]


def fits(text: str, facts) -> bool:
    groups = (egocentric.DIRECTION_WORDS, egocentric.COLOUR_WORDS, egocentric.SHAPE_WORDS)
    return all(set(text.split()) & set(words[fact]) for words, fact in zip(groups, facts))


def test_questions_have_one_answer(root):
    questions = json.loads((root / "egomcq.json").read_text())
    assert len(questions) == egocentric.QUESTIONS
    truth = {(f"val-{r.video:04d}", r.start): r.facts for r in rows(0, "ego4d_val", 6)}
    for question in questions.values():
        facts = [truth[c["video_uid"], c["clip_start"]] for c in question["choices"].values()]
        assert len({fact[:2] for fact in facts}) == 5
        fitting = [k for k, fact in enumerate(facts) if fits(question["query"]["clip_text"], fact)]
        assert fitting == [question["answer"]]
        videos = {choice["video_uid"] for choice in question["choices"].values()}
        assert len(videos) == {1: 5, 2: 1}[question["types"]]


def test_relevancies():
    truth = ("left", "red", "disc")
    assert relevancy(truth, truth) == 1
    assert relevancy(truth, ("left", "red", "ring")) == pytest.approx(2 / 3)
    assert relevancy(truth, ("up", "blue", "ring")) == 0


@pytest.mark.parametrize("module", [egocentric, narrated])
def test_the_command_takes_the_number_of_videos_and_no_other(monkeypatch, capsys, tmp_path, module):
    kind = f"--{module.__name__.rpartition('.')[2]}"
    monkeypatch.setattr(module, "make_set", lambda out, **how: str(how.get("videos")))
    for words, said in (([], "None"), (["--train", "7"], "7")):
        toy.main(["--out", str(tmp_path), kind, *words])
        assert capsys.readouterr().out == f"{said}\n"
    for words in (["--val", "7"], ["--test", "96"], ["--train", "0"]):
        with pytest.raises(SystemExit) as end:
            toy.main(["--out", str(tmp_path), kind, *words])
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {words[0]}" if words[0] == "--train" else "error: --val and")
