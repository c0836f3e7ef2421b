"""Lists from published annotations: labels, names of files, what is missing, what is there twice."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.video.clips_on_disk import write_video

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import make_lists

HEAD = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def run(capsys):
    """Runs the tool: (exit code, stdout, stderr)."""

    def run(*words):
        code = 0
        try:
            make_lists.main([*map(str, words)])
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture
def kinetics(tmp_path):
    """Annotations and files in the three usual ways to name them: (csv files, folder)."""
    videos = tmp_path / "videos"
    touch(videos, "train/abcdefghij1_000001_000011.mp4", "zumba, slow/abcdefghij2_000005_000015.mkv")
    touch(videos, "abcdefghij3.mp4", "stranger.mp4", "train/abcdefghij4.mp4", "val/abcdefghij4.mp4")
    train, val = tmp_path / "train.csv", tmp_path / "validate.csv"
    train.write_text(
        HEAD
        + 'applauding,abcdefghij1,1,11,train\n"zumba, slow",abcdefghij2,5,15,train\napplauding,gone_______,7,17,train\n'
    )
    val.write_text(HEAD + '"zumba, slow",abcdefghij3,0,10,validate\napplauding,abcdefghij4,0,10,validate\n')
    return [train, val], videos


def test_names_that_no_list_can_hold_are_reported(kinetics, tmp_path, run):
    """One with a line break would add a row of its choice, bytes that are no UTF-8 a traceback."""
    files, videos = kinetics
    (videos / "x\ny.mp4 1\nz").mkdir()
    (videos / "abcdefghij3.mp4").rename(videos / "x\ny.mp4 1\nz/abcdefghij3.mp4")
    (videos / os.fsdecode(b"str\xff.mp4")).touch()
    code, told, _ = run("kinetics", "--annotations", *files, "--videos", videos, "--out", tmp_path / "out")
    assert code == 0
    assert "val: 1 rows, 1 videos missing" in told
    assert "2 videos that no list can name; first: " in told
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "line break" in report["unnameable"]["x\ny.mp4 1\nz/abcdefghij3.mp4"]
    assert "UTF-8" in report["unnameable"]["str\udcff.mp4"]


def test_kinetics(kinetics, tmp_path, run):
    files, videos = kinetics
    out = tmp_path / "out"
    code, told, _ = run("kinetics", "--annotations", *files, "--videos", videos, "--out", out)
    assert code == 0
    assert "train: 2 rows, 1 videos missing" in told
    train = "train/abcdefghij1_000001_000011.mp4 0\nzumba, slow/abcdefghij2_000005_000015.mkv 1\n"
    assert (out / "train.csv").read_text() == train
    val = (out / "val.csv").read_text()
    assert val == (out / "test.csv").read_text() == "abcdefghij3.mp4 1\nval/abcdefghij4.mp4 0\n"
    assert json.loads((out / "classes.json").read_text()) == {"applauding": 0, "zumba, slow": 1}
    report = json.loads((out / "report.json").read_text())
    assert report["missing"] == {"train": ["gone________000007_000017"], "val": [], "test": []}
    assert report["unlisted"] == ["stranger.mp4"]


def test_lists_that_exist_are_not_overwritten(kinetics, tmp_path, run):
    files, videos = kinetics
    (tmp_path / "out").mkdir()
    (tmp_path / "out/val.csv").write_text("mine\n")
    code, _, told = run("kinetics", "--annotations", *files, "--videos", videos, "--out", tmp_path / "out")
    assert (code, told.count("\n")) == (2, 1)
    assert "val.csv exists and is not overwritten" in told
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["val.csv"]


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [("c.txt", "zumba, slow\napplauding\n", 1), ("c.json", '{"applauding": 1, "zumba, slow": 0}', 1)],
)
def test_class_numbers_may_be_given(kinetics, tmp_path, run, name, text, number):
    files, videos = kinetics
    (tmp_path / name).write_text(text)
    words = ("--annotations", *files, "--videos", videos, "--out", tmp_path / "out", "--classes", tmp_path / name)
    assert run("kinetics", *words)[0] == 0
    assert (tmp_path / "out/train.csv").read_text().split("\n")[0].endswith(f" {number}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "a,abcdefghij1,1,11,train\na,abcdefghij2,x,11,train\n", "row 3: expected a time"),
        (HEAD + "a,abcdefghij1,1,11,training\n", "row 2: expected a split such as train"),
        (HEAD + "a,abcdefghij1,1,11,train\n,abcdefghij2,1,11,train\n", "row 3: expected a class"),
        ("label,id\na,b\n", "no column youtube_id"),
        (HEAD + "a,gone,1,11,train\n", "train.csv would be empty"),
    ],
)
def test_wrong_annotations_are_one_line(tmp_path, run, text, expected):
    touch(tmp_path / "videos", "abcdefghij1.mp4")
    (tmp_path / "a.csv").write_text(text)
    words = ("--annotations", tmp_path / "a.csv", "--videos", tmp_path / "videos", "--out", tmp_path / "out")
    code, _, told = run("kinetics", *words)
    assert (code, told.count("\n")) == (2, 1)
    assert expected in told
    assert not (tmp_path / "out").exists()


def test_ssv2(tmp_path, run):
    notes, videos = tmp_path / "labels", tmp_path / "videos"
    notes.mkdir()
    touch(videos, "1.webm", "22.webm", "3.mp4")
    labels = {"Pushing something": "1", "Holding something next to something": "0"}
    rows = {
        "train": [{"id": "1", "template": "Pushing [something]"}, {"id": "4", "template": "Pushing [something]"}],
        "validation": [{"id": "22", "template": "Holding [something] next to [something]"}],
    }
    for name, content in {**rows, "labels": labels}.items():
        (notes / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    code, told, _ = run("ssv2", "--annotations", notes, "--videos", videos, "--out", tmp_path / "out")
    assert code == 0
    assert "train: 1 rows, 1 videos missing" in told
    lists = {name: (tmp_path / f"out/{name}.csv").read_text() for name in ("train", "val", "test")}
    assert lists == {"train": "1.webm 1\n", "val": "22.webm 0\n", "test": "22.webm 0\n"}
    assert json.loads((tmp_path / "out/report.json").read_text())["unlisted"] == ["3.mp4"]


def test_ssv2_unknown_template_is_one_line(tmp_path, run):
    touch(tmp_path / "videos", "1.webm")
    for name, content in {"labels": {"A": "0"}, "train": [{"id": "1", "template": "B"}], "validation": []}.items():
        (tmp_path / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    words = ("--annotations", tmp_path, "--videos", tmp_path / "videos", "--out", tmp_path / "out")
    code, _, told = run("ssv2", *words)
    assert code == 2
    assert "train.json: row 1: expected a class such as A, found 'B'" in told


def id_of(name: str) -> str:
    return f"{name:_<11}"


@pytest.fixture
def sets(tmp_path):
    """Two sets of Kinetics: a class of one name, a pair of names, a class of each; videos in both, and a leaked one."""
    for name, classes, train, val in (
        ("k400", ["archery", "shot put", "old name"], [("a", 0), ("b", 1), ("leak", 2)], [("v", 1)]),
        ("k600", ["shot put", "New name", "zumba"], [("b", 0), ("c", 2), ("d", 1)], [("v", 0), ("leak", 1)]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "classes.json").write_text(json.dumps({c: n for n, c in enumerate(classes)}))
        for split, rows in {"train": train, "val": val}.items():
            lines = [f"{split}/{id_of(v)}_000001_000011.mp4 {n}\n" for v, n in rows]
            (tmp_path / name / f"{split}.csv").write_text("".join(lines))
    return [str(word) for n in ("k400", "k600") for word in ("--set", tmp_path / n, f"{n}/videos")]


@pytest.mark.parametrize(
    "merge", [[["New name", "old name"]], {"0": ["New name", "old name"]}, {"old name": "New name"}]
)
def test_k710(sets, tmp_path, run, merge):
    (tmp_path / "merge.json").write_text(json.dumps(merge))
    code, told, _ = run("k710", *sets, "--merge", tmp_path / "merge.json", "--out", tmp_path / "out")
    assert code == 0, told
    numbers = {"New name": 0, "archery": 1, "shot put": 2, "zumba": 3}
    assert json.loads((tmp_path / "out/classes.json").read_text()) == numbers
    rows = {s: (tmp_path / f"out/{s}.csv").read_text().splitlines() for s in ("train", "val")}
    name = "{}/videos/{}/{}_000001_000011.mp4 {}".format
    assert rows["train"] == [name("k400", "train", id_of(v), n) for v, n in (("a", 1), ("b", 2))] + [
        name("k600", "train", id_of(v), n) for v, n in (("c", 3), ("d", 0))
    ]
    assert rows["val"] == [name("k400", "val", id_of("v"), 2), name("k600", "val", id_of("leak"), 0)]
    report = json.loads((tmp_path / "out/report.json").read_text())["left_out"]
    assert len(report["train"]) == 2  # b of the second set, and the leaked one
    assert len(report["val"]) == 1


def test_k710_keeps_all_chunks_of_a_video(sets, tmp_path, run):
    chunks = [f"train/{id_of('a')}_000001_000011_0000{k}.mp4 0\n" for k in range(3)]
    (tmp_path / "k400/train.csv").write_text("".join(chunks))
    assert run("k710", *sets, "--out", tmp_path / "out")[0] == 0
    lines = (tmp_path / "out/train.csv").read_text().splitlines()
    assert sum(id_of("a") in line for line in lines) == 3


def test_k710_with_published_class_numbers(sets, tmp_path, run):
    (tmp_path / "classes.txt").write_text("zumba\nshot put\nold name\narchery\n")
    (tmp_path / "merge.json").write_text(json.dumps([["New name", "old name"]]))
    words = ("--merge", tmp_path / "merge.json", "--classes", tmp_path / "classes.txt", "--out", tmp_path / "out")
    assert run("k710", *sets, *words)[0] == 0
    assert (tmp_path / "out/val.csv").read_text().splitlines()[1].endswith(" 2")  # New name, under its other name
    words = ("--classes", tmp_path / "classes.txt", "--out", tmp_path / "out2")
    code, _, told = run("k710", *sets, *words)
    assert code == 2
    assert "class 'New name' is not among the joint classes" in told


def test_internvid(tmp_path, run):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "abcdefghij1.mp4", range(60))
    (videos / "abcdefghij2.mp4").write_text("no video")
    (tmp_path / "clips.csv").write_text(
        "YoutubeID,Start_timestamp,End_timestamp,Caption\n"
        'abcdefghij1,00:00:00.500,00:00:01.000,"a dog, running"\nabcdefghij1,1,00:01.5,x\n'
        "abcdefghij1,00:00:08.000,00:00:09.000,behind the end\nabcdefghij2,0,1,x\ngone,0,1,x\n"
    )
    words = ("--annotations", tmp_path / "clips.csv", "--videos", videos, "--out", tmp_path / "out", "--workers", 1)
    code, told, _ = run("internvid", *words)
    assert code == 0, told
    assert (tmp_path / "out/train.csv").read_text() == "abcdefghij1.mp4 0 15 30\nabcdefghij1.mp4 0 30 45\n"
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["missing"] == {"train": ["gone"]}
    assert [line.split(":")[0] for line in report["left_out"]["train"]] == ["abcdefghij1.mp4", "abcdefghij2.mp4"]
