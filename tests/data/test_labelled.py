"""csv files of paths and labels as people really write them: read right, or refused with file and line."""

import json
import os
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from videorl.data.labelled import ActivityNet, Kinetics, SomethingSomething
from videorl.registry import UserError
from videorl.spec import Clip, Masking, Reading, Spec, Views

VALUES = {
    "num_classes": 5,
    "root": "",
    "separator": " ",
    "class_names": "",
    "multi_label": False,
    "offset": False,
    "val_skip": 1,
}


@pytest.fixture
def read(tmp_path):
    """Writes `content` as train.csv and reads it."""

    def of(content: str | bytes, *, outside: bool = False, split: str = "train", views: Views | None = None, **changes):
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / "train.csv").write_bytes(data)
        spec = Spec(Clip(4, 2, 32, 32), views=views or Views(), reading=Reading(allow_outside_root=outside))
        return Kinetics(spec, split, **{**VALUES, "annotations": str(tmp_path), **changes})

    return of


@pytest.fixture
def refused(read, tmp_path):
    """The part of the one-line refusal that follows `…/train.csv`."""

    def of(content, **changes) -> str:
        with pytest.raises(UserError) as error:
            read(content, **changes)
        said = str(error.value)
        assert "\n" not in said
        assert "\0" not in said
        start = str(tmp_path / "train.csv")
        assert said.startswith(start)
        return said.removeprefix(start)

    return of


def rows(data) -> list[tuple[str, int]]:
    return [(path.decode(), label) for path, label in zip(data.records.paths.tolist(), data.records.labels.tolist())]


PLAIN = [("a.mp4", 0), ("b/c.mp4", 4)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.mp4 0\nb/c.mp4 4\n", PLAIN),
        ("a.mp4 0\nb/c.mp4 4", PLAIN),
        ("\ufeffa.mp4 0\nb/c.mp4 4\n", PLAIN),
        ("a.mp4 0\r\nb/c.mp4 4\r\n", PLAIN),
        ("a.mp4 0\rb/c.mp4 4\r", PLAIN),
        ("\n\na.mp4 0\n   \nb/c.mp4 4  \n\n", PLAIN),
        ("  a.mp4 0\n\tb/c.mp4 4\t\n", PLAIN),
        ("my video (1).mp4 3\n", [("my video (1).mp4", 3)]),
        ("my  video.mp4 3\n", [("my  video.mp4", 3)]),
        ("a.mp4 007\n", [("a.mp4", 7)]),
        ("été/日本.mp4 1\n", [("été/日本.mp4", 1)]),
        ("2020:01:02.mp4 1\n", [("2020:01:02.mp4", 1)]),
        ("..a/..b.mp4 1\n", [("..a/..b.mp4", 1)]),
        ("a/../b.mp4 1\n", [("a/../b.mp4", 1)]),
        ("a\u2028b\x0c\x85c.mp4 1\n", [("a\u2028b\x0c\x85c.mp4", 1)]),
        ("-a%03d*'\".mp4 1\n", [("-a%03d*'\".mp4", 1)]),
        ("a.mp4 1\na.mp4 1\n", [("a.mp4", 1)] * 2),
    ],
)
def test_what_is_read(read, content, expected):
    data = read(content, num_classes=8)
    assert rows(data) == expected
    assert len(data) == len(expected)


@pytest.mark.parametrize("separator", ["\t", ",", ";", ", "])
def test_other_separators(read, separator):
    data = read(f"my video.mp4{separator}3\nb,c.mp4{separator}4\n", separator=separator)
    assert rows(data) == [("my video.mp4", 3), ("b,c.mp4", 4)]


# --- as pandas, Windows and other toolkits write them ----------------------------------------------------------------


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """Files that lists mean, and a home folder."""
    for name in (
        "play guitar/a b.mp4",
        "walk/c.mp4",
        "x\\y.mp4",
        "d.webm",
        "e.mp4",
        "e.mkv",
        "clip 7.mp4",
        "home/h.mp4",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "frames").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("content", "separator", "expected"),
    [
        ('"play guitar/a b.mp4" 0\nwalk/c.mp4 1\n', " ", [("play guitar/a b.mp4", 0), ("walk/c.mp4", 1)]),
        ('"a, b.mp4",0\n"c ""d"".mp4",1\n', ",", [("a, b.mp4", 0), ('c "d".mp4', 1)]),
        ('"a b.mp4"\t"3"\n', "\t", [("a b.mp4", 3)]),
        ("a b.mp4\t3\n", "\\t", [("a b.mp4", 3)]),
        ("play guitar\\a b.mp4 0\nwalk\\c.mp4 1\n", " ", [("play guitar/a b.mp4", 0), ("walk/c.mp4", 1)]),
        ("gone\\a.mp4 0\nx\\y.mp4 1\n", " ", [("gone/a.mp4", 0), ("x\\y.mp4", 1)]),
        ("walk/c 0\nd 1\ngone 2\nclip 7 3\n", " ", [("walk/c.mp4", 0), ("d.webm", 1), ("gone", 2), ("clip 7.mp4", 3)]),
        ("walk/c.mp4 120 1\nclip 7.mp4 80 2\n", " ", [("walk/c.mp4", 1), ("clip 7.mp4", 2)]),
        ("walk\\c.mp4,120,1\n", ",", [("walk/c.mp4", 1)]),
    ],
)
def test_lists_of_pandas_windows_and_other_toolkits(read, disk, content, separator, expected):
    assert rows(read(content, separator=separator)) == expected


def test_labels_with_commas_are_quoted_by_pandas(read):
    data = read('"a,b.mp4","1,3"\nc.mp4,0\n', separator=",", multi_label=True)
    assert [path.decode() for path in data.records.paths] == ["a,b.mp4", "c.mp4"]
    assert data.records.labels.tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]]


def test_home_folders_are_read_where_paths_may_leave_the_folder(read, refused, disk):
    data = read("~/h.mp4 1\n~/h 1\na/~/b.mp4 3\n", outside=True)
    assert [data.path(i) for i in range(3)] == [f"{disk}/home/h.mp4"] * 2 + [f"{disk}/a/~/b.mp4"]
    assert "leaves the video folder" in refused("~/h.mp4 1\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("..\\..\\a.mp4 1\n", ":1: '..\\..\\a.mp4' leaves the video folder"),
        ('"a.mp4 1\n', ":1: the quotation mark of '\"a.mp4' is not closed; write both or none"),
        ('a b.mp4" 1\n', ":1: the quotation mark of 'a b.mp4\"' is not closed; write both or none"),
        ("C:\\data\\a.mp4 1\n", ":1: 'C:\\data\\a.mp4' is a path of Windows; write paths from the video folder on"),
        ("e 1\n", ":1: 'e' may be e.mkv or e.mp4; write the ending"),
        ("frames 48 1\n", ":1: 'frames 48': a folder before the label: such lists are read by TRAIN.DATASET and TEST"),
        ("a.mp4 3 0 9\n", ":1: 'a.mp4 3 0': numbers before the label: such lists are read by TRAIN.DATASET and TEST"),
    ],
)
def test_what_may_mean_two_things_is_refused_with_advice(refused, disk, content, said):
    assert refused(content, num_classes=10).startswith(said)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a.mp4 0\nb.mp4\n", ":2: expected `path label`, found 'b.mp4' (see DATA.PATH_LABEL_SEPARATOR)"),
        ("my video.mp4\n", ":1: expected a class number after ' ', found 'video.mp4'"),
        (" 3\n", ":1: expected `path label`, found ' 3' (see DATA.PATH_LABEL_SEPARATOR)"),
        (
            "a.mp4\t3\n",
            ":1: expected `path label`, found 'a.mp4\\t3' (see DATA.PATH_LABEL_SEPARATOR: it seems to be '\\t')",
        ),
        (
            "a.mp4,3\n",
            ":1: expected `path label`, found 'a.mp4,3' (see DATA.PATH_LABEL_SEPARATOR: it seems to be ',')",
        ),
        ("path label\na.mp4 1\n", ":1: expected a class number after ' ', found 'label'"),
        ("# made by hand\na.mp4 1\n", ":1: expected a class number after ' ', found 'hand'"),
        ("a.mp4 cat\n", ":1: expected a class number after ' ', found 'cat'"),
        ("a.mp4 -1\n", ":1: expected a class number after ' ', found '-1'"),
        ("a.mp4 nan\n", ":1: expected a class number after ' ', found 'nan'"),
        ("a.mp4 1.0\n", ":1: expected a class number after ' ', found '1.0'"),
        ("a.mp4 1_0\n", ":1: expected a class number after ' ', found '1_0'"),
        ("a.mp4 ٣\n", ":1: expected a class number after ' ', found '٣'"),
        ("a.mp4 1,2\n", ":1: expected a class number after ' ', found '1,2'"),
        ("a.mp4 " + "9" * 5000, ":1: expected a class number after ' ', found '" + "9" * 30 + " … " + "9" * 30 + "'"),
        ("a.mp4 999\n", ":1: label 999 is not in 0 … 4; check MODEL.NUM_CLASSES"),
        ("a.mp4 5\n", ":1: label 5 is not in 0 … 4; check MODEL.NUM_CLASSES"),
        ("../a.mp4 1\n", ":1: '../a.mp4' leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it"),
        ("a/../../b 1\n", ":1: 'a/../../b' leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it"),
        (".. 1\n", ":1: '..' leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it"),
        ("/etc/passwd 1\n", ":1: '/etc/passwd' leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it"),
        ("http://x/a 1\n", ":1: 'http://x/a' leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it"),
        ("a\0b.mp4 1\n", ":1: the path 'a\\x00b.mp4' holds a NUL character"),
        ("a 1\n\nb 2\na 1\na 3\n", ":5: 'a' has label 3, but 1 on line 1"),
        (b"\xff\xfe\x00a.mp4 1\n", ": not UTF-8 text (byte 0); save it as UTF-8"),
        ("é.mp4 1\n".encode("latin-1"), ": not UTF-8 text (byte 0); save it as UTF-8"),
        ("a.mp4 1\n".encode("utf-16"), ": not UTF-8 text (byte 0); save it as UTF-8"),
        ("", " holds no samples; expected lines `path label`"),
        ("\ufeff", " holds no samples; expected lines `path label`"),
        ("\n \r\n", " holds no samples; expected lines `path label`"),
    ],
)
def test_what_is_refused(refused, content, said):
    assert refused(content) == said


def test_every_bad_line_is_counted_and_the_first_five_are_shown(refused):
    assert refused("a 1\nb\nc 9\n") == (
        ":2: expected `path label`, found 'b' (see DATA.PATH_LABEL_SEPARATOR);"
        " line 3: label 9 is not in 0 … 4; check MODEL.NUM_CLASSES"
    )
    said = refused("".join(f"v{i} 9\n" for i in range(8)))
    assert re.findall(r"[:e] ?(\d): label", said) == list("12345")
    assert said.endswith(" (and 3 more lines)")


def test_paths_may_leave_the_folder_where_that_is_allowed(read, refused, tmp_path):
    data = read("../a.mp4 1\n/etc/passwd 2\n", outside=True, root=str(tmp_path / "."))
    assert (data.path(0), data.path(1)) == (f"{tmp_path}/../a.mp4", "/etc/passwd")
    assert "NUL" in refused("a\0b.mp4 1\n", outside=True)


def test_the_folder_of_the_videos(read, tmp_path, monkeypatch):
    assert read("a.mp4 1\n").path(0) == f"{tmp_path}/a.mp4"
    (tmp_path / "videos").mkdir()
    assert read("a.mp4 1\n", root=str(tmp_path / "videos")).path(0) == f"{tmp_path}/videos/a.mp4"
    monkeypatch.chdir(tmp_path)
    data = read("a.mp4 1\n", root="videos")
    monkeypatch.chdir("/")
    assert data.path(0) == f"{tmp_path}/videos/a.mp4", "a relative folder is that of the start of the run"
    with pytest.raises(UserError, match=r"video folder .*/nix does not exist; set DATA\.PATH_PREFIX to where"):
        read("a.mp4 1\n", root=str(tmp_path / "nix"))


def test_missing_annotations(read, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"/val\.csv does not exist; the folder holds train\.csv; set DATA\.PATH_TO_DATA"
    ):
        read("a.mp4 1\n", split="val")
    with pytest.raises(UserError, match=r"annotation folder .*/nix does not exist; set DATA\.PATH_TO_DATA_DIR to the"):
        read("a.mp4 1\n", annotations=str(tmp_path / "nix"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(UserError, match=rf"{tmp_path}/val\.csv does not exist; the folder holds train\.csv; set DATA"):
        read("a.mp4 1\n", annotations="", split="val")


# --- several labels --------------------------------------------------------------------------------------------------


def test_several_labels_become_rows_of_zeros_and_ones(read):
    data = read("a b.mp4 1,3\nc.mp4 0\nd.mp4 4,4\n", multi_label=True)
    assert data.records.labels.dtype == np.float32
    assert data.records.labels.tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize("label", ["1,", ",1", "1,,2", "1;2", "a", "1, 2"])
def test_broken_lists_of_labels_are_refused(refused, label):
    said = refused(f"a.mp4 {label}\n", multi_label=True)
    assert said == f":1: expected class numbers `3,14` (no spaces) after ' ', found {label.split()[-1]!r}"


def test_one_label_too_large_among_several_is_refused(refused):
    assert refused("a.mp4 1,5\n", multi_label=True) == ":1: label 5 is not in 0 … 4; check MODEL.NUM_CLASSES"
    assert refused("a 1,2\na 2\n", multi_label=True) == ":2: 'a' has label 2, but 1,2 on line 1"


# --- class names -----------------------------------------------------------------------------------------------------


def test_class_names_are_ordered_by_number(read, tmp_path):
    assert read("a 1\n").classes == ()
    (tmp_path / "classes.json").write_text(json.dumps({"e": 4, "b": "1", "été": 2, "d": 3, "a": 0}))
    assert read("a 1\n").classes == ("a", "b", "été", "d", "e")
    (tmp_path / "mine.json").write_text(json.dumps({str(i): i for i in range(5)}), encoding="utf-8")
    assert read("a 1\n", class_names=str(tmp_path / "mine.json")).classes == tuple("01234")


def test_samples_of_each_class_are_counted(read, tmp_path):
    (tmp_path / "train.csv").write_text("a 1\nb 4\nc 1\n")
    spec = Spec(Clip(4, 2, 32, 32), labels={"kinetics": 5}, space="kinetics")
    values = {**VALUES, "annotations": str(tmp_path)}
    assert Kinetics(spec, "train", **values).class_counts["kinetics"].tolist() == [0, 2, 0, 0, 1]
    (tmp_path / "train.csv").write_text("a 1,4\nb 4\n")
    assert Kinetics(spec, "train", **{**values, "multi_label": True}).class_counts["kinetics"].tolist() == [
        0,
        1,
        0,
        0,
        2,
    ]
    masked = replace(spec, masking=Masking(ratio=0.5))
    (tmp_path / "train.csv").write_text("a 1\n")
    assert Kinetics(masked, "train", **values).class_counts == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('["a", "b"]', 'expected json {"class name": number, …}'),
        ('{"a": "x"}', 'expected json {"class name": number, …}'),
        ('{"a": null}', 'expected json {"class name": number, …}'),
        ('{"a": 0', 'expected json {"class name": number, …}'),
        ("", 'expected json {"class name": number, …}'),
        ('{"a": 0, "b": 1}', "expected each number 0 … 4 once, found 2 names; check MODEL.NUM_CLASSES"),
        ('{"a": 0, "b": 1, "c": 2, "d": 3, "e": 3}', "expected each number 0 … 4 once, found 5 names"),
        ('{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}', "expected each number 0 … 4 once, found 5 names"),
    ],
)
def test_broken_class_names_are_refused(read, tmp_path, content, said):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/classes.json: {said}")):
        read("a 1\n")


def test_class_names_that_are_asked_for_must_exist(read):
    with pytest.raises(UserError, match=r"DATA\.CLASS_NAMES /nix\.json does not exist"):
        read("a 1\n", class_names="/nix.json")


# --- the data set itself ---------------------------------------------------------------------------------------------


def test_records_hold_no_object_per_row(read):
    """Forked workers share arrays; lists of str are copied page by page as their counts of references change."""
    data = read("".join(f"folder/video {i}.mp4 {i % 5}\n" for i in range(1000)))
    for value in vars(data.records).values():
        assert isinstance(value, (str, tuple, np.ndarray))
        assert not isinstance(value, np.ndarray) or not value.dtype.hasobject
    assert data.records.labels.dtype == np.int64
    again = pickle.loads(pickle.dumps(data))
    assert (rows(again), again.path(7), again.fingerprint) == (rows(data), data.path(7), data.fingerprint)


def test_the_fingerprint_is_that_of_the_rows_in_order(read):
    text = "a.mp4 1\nb.mp4 2\nc.mp4 3\n"
    first = read(text).fingerprint
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert read(text.replace("\n", "\r\n")).fingerprint == first
    changed = [
        "a.mp4 1\nb.mp4 2\nc.mp4 4\n",
        "a.mp4 1\nb.mp4 2\nd.mp4 3\n",
        "b.mp4 2\na.mp4 1\nc.mp4 3\n",
        text + "d 1\n",
    ]
    changed += ["a.mp4 1\nb.mp4 2\n", "aa.mp4 1\nb.mp4 2\nc.mp4 3\n"]
    assert len({first, *(read(other).fingerprint for other in changed)}) == 1 + len(changed)


def test_crops_are_one_or_three(read):
    with pytest.raises(UserError, match=r"number of spatial crops: expected 1 .* or 3 .*, found 2"):
        read("a 1\n", views=Views(1, 2))


def test_ssv2_samples_the_whole_video(read, tmp_path):
    read("a 1\n")
    spec = Spec(Clip(4, 2, 32, 32))
    assert SomethingSomething(spec, "train", **VALUES, annotations=str(tmp_path)).uniform
    assert not read("a 1\n").uniform


def test_a_large_file_is_read_without_checks_of_each_file(read, monkeypatch):
    """A stat of each of 500,000 videos on a network disk would take the first hour of a run."""
    asked = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (asked.append(str(path)), real(path, *a, **k))[1])
    data = read("".join(f"v{i}.mp4 {i % 5}\n" for i in range(5000)))
    assert len(data) == 5000
    assert not [path for path in asked if path.endswith(".mp4")]


def test_activitynet_takes_the_first_of_a_list(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4 3,1\nb.mp4 0\n")
    data = ActivityNet(Spec(Clip(4, 2, 32, 32)), "train", **{**VALUES, "annotations": str(tmp_path)})
    assert data.records.labels.tolist() == [3, 0]


def test_val_skip_takes_every_so_many_th_line_of_val_alone(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("".join(f"{i}.mp4 {i % 5}\n" for i in range(7)))
    values = {**VALUES, "annotations": str(tmp_path), "val_skip": 3}
    assert [Kinetics(Spec(Clip(4, 2, 32, 32)), "val", **values).path(i)[-5:] for i in range(3)] == [
        "0.mp4",
        "3.mp4",
        "6.mp4",
    ]
    assert len(Kinetics(Spec(Clip(4, 2, 32, 32)), "val", **values)) == 3
    assert len(Kinetics(Spec(Clip(4, 2, 32, 32)), "train", **values)) == 7
