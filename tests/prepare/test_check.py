"""A folder with one file of each fault: all are found, and the rest is left alone."""

import json
import os
import shutil
import signal
from pathlib import Path

import av
import numpy as np
import pytest

from videorl.cli import check as tool
from videorl.loading.pool import Workers
from videorl.prepare import check, files
from videorl.prepare.files import Look

ROOT = Path(__file__).parents[2]
ESCAPE = "\x1b[2J"  # clears a terminal


def write_video(path: Path, *, frames: int = 30, seed: int = 0, size: int = 32, codec: str = "mpeg4", seconds=None):
    """A video at 15 fps of a noise picture that moves; `seconds`: the times of its frames, where they are uneven."""
    picture = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=15)
        stream.width = stream.height = size
        stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        stream.gop_size = 5
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, i, 1), format="rgb24")
            frame.pts = i if seconds is None else round(seconds[i] * 15)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the tool: (exit code, json report or None, stdout, stderr)."""

    def run(*words):
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        with pytest.raises(SystemExit) as stop:
            tool.main(["--workers", "2", "--json", str(report), *map(str, words)])
        out = capsys.readouterr()
        return stop.value.code, json.loads(report.read_text()) if report.exists() else None, out.out, out.err

    return run


@pytest.fixture
def good(tmp_path):
    """Three good videos, and their csv."""
    for i in range(3):
        write_video(tmp_path / f"videos/good {i}.mp4", seed=i)
    (tmp_path / "train.csv").write_text("".join(f"videos/good {i}.mp4 {i}\n" for i in range(3)))
    return tmp_path


def found(section: dict) -> set[tuple]:
    return {(finding["kind"], finding["line"]) for finding in section["findings"]}


def add_faults(folder: Path) -> set[tuple]:
    """Adds one row of each fault to the csv of `good`, and one more good row; returns what must be found."""
    videos = folder / "videos"
    whole = (videos / "good 0.mp4").read_bytes()
    (videos / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "empty.mp4").touch()
    shutil.copy(videos / "good 1.mp4", videos / "copy.mp4")
    write_video(videos / "short.mp4", frames=3, seed=7)
    write_video(videos / "tiny.mp4", size=8, seed=8)
    write_video(videos / "gap.mp4", seed=9, seconds=[(i + 10 * (i >= 9)) / 15 for i in range(30)])
    (videos / f"{ESCAPE}.mp4").write_bytes(b"<html>404</html>")
    write_video(videos / "good 9.mp4", seed=9)
    rows = {
        "videos/truncated.mp4 0": ("unreadable", 4),
        "videos/empty.mp4 0": ("empty", 5),
        "videos/copy.mp4 1": ("duplicate", 6),
        "videos\\missing.mp4 2": ("unreadable", 7),
        "videos/short.mp4 0": ("short", 8),
        "videos/tiny.mp4 0": ("odd", 9),
        "videos/gap.mp4 0": ("odd", 10),
        "no_label": ("broken", 11),
        "videos/good 0.mp4 -3": ("broken", 12),
        f"videos/{ESCAPE}.mp4 0": ("unreadable", 13),
        "videos/./good 2.mp4 2": ("duplicate", 14),
    }
    with open(folder / "train.csv", "a") as file:
        file.writelines(line + "\n" for line in [*rows, "videos/good 9.mp4 7"])
    return set(rows.values())


def test_nothing_is_found_in_good_videos(good, run):
    code, report, out, err = run(good / "train.csv", "--decode", "all")
    assert code == 0
    assert report["clean"]
    section = report["splits"]["train"]
    assert section["findings"] == []
    assert (section["rows"], section["files"]) == (3, 3)
    assert section["videos"]["sizes"] == {"32x32": 3}
    assert section["videos"]["fps"] == {"min": 15.0, "median": 15.0, "max": 15.0}
    assert section["videos"]["frames"]["max"] == 30
    assert "3/3" in err


def test_each_fault_is_found_once_with_its_line(good, run):
    expected = add_faults(good)
    code, report, out, err = run(good / "train.csv")
    section = report["splits"]["train"]
    assert code == 1
    assert found(section) == expected
    assert len(section["findings"]) == len(expected)
    stages = {finding["line"]: finding["stage"] for finding in section["findings"]}
    assert stages[4] == stages[7] == stages[13] == "open"
    missing = f"No such file or directory: {good}/videos/missing.mp4"
    assert f"line 7: videos\\missing.mp4: open: {missing}\n" in out
    assert "line 6: videos/copy.mp4: same contents as line 2 (videos/good 1.mp4)" in out
    assert "line 14: videos/./good 2.mp4: same file as line 3" in out
    assert "line 10: videos/gap.mp4: uneven frame rate: up to 8.2 times the mean" in out  # 11 of 39 / 29
    assert f"uneven in 1 of {section['videos']['files']} files; dense clips go by time there" in out
    assert "\x1b" not in out
    assert "DATA." not in out + err, "there is no config"
    assert section["labels"]["rows_by_class"] == {"0": 7, "1": 2, "2": 3, "7": 1}
    assert section["labels"]["first_without_rows"] == [3, 4, 5, 6]


@pytest.mark.parametrize(("labels", "odd"), [([0, 1, 2, 999, 998], [4]), ([0, 3, 9], []), ([*range(20), 31], [])])
def test_labels_far_above_the_others_are_odd_where_no_config_counts_the_classes(tmp_path, labels, odd):
    (tmp_path / "a.csv").write_text("".join(f"{k}.mp4 {label}\n" for k, label in enumerate(labels)))
    split = check.read_csv(tmp_path / "a.csv")
    assert [finding.line - 1 for finding in check._odd_labels(split)] == odd
    split.num_classes = 1000
    assert not list(check._odd_labels(split))


def test_the_separator_of_a_csv_is_named_as_it_is_typed(tmp_path):
    (tmp_path / "a.csv").write_text("a.mp4,3\n")
    [broken] = check.read_csv(tmp_path / "a.csv").broken
    assert broken.reason == "expected `path label`, found 'a.mp4,3' (see --separator: it seems to be ',')"


def test_clean_csv_holds_the_good_rows_and_is_never_written_over_a_file(good, run):
    add_faults(good)
    original = (good / "train.csv").read_text().splitlines()
    code, report, out, _ = run(good / "train.csv", "--clean", good / "clean.csv")
    assert code == 1
    assert (good / "clean.csv").read_text().splitlines() == [original[n - 1] for n in (1, 2, 3, 8, 9, 10, 15)]
    code, report, _, err = run(good / "train.csv", "--clean", good / "train.csv")
    assert (code, report) == (2, None)
    assert (good / "train.csv").read_text().splitlines() == original
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_one_flipped_bit_that_no_decoder_notices_is_found_by_the_manifest(good, run):
    video, manifest = good / "videos/raw.avi", good / "hashes/videos.jsonl"
    write_video(video, codec="rawvideo")
    with open(good / "train.csv", "a") as file:
        file.write("videos/raw.avi 3\n")
    command = (good / "train.csv", "--hash", manifest, "--decode", "all")
    assert run(*command)[0] == 0
    written = manifest.read_text()
    assert len(written.splitlines()) == 4
    assert run(*command)[0] == 0

    data = bytearray(video.read_bytes())
    data[len(data) // 2] ^= 1
    video.write_bytes(data)
    assert run(*command[:1], "--decode", "all")[0] == 0
    write_video(good / "videos/new.mp4", seed=5)
    with open(good / "train.csv", "a") as file:
        file.write("videos/new.mp4 3\n")
    code, report, out, _ = run(*command)
    assert code == 1
    assert found(report["splits"]["train"]) == {("changed", 4), ("unlisted", 5)}
    assert manifest.read_text() == written


def test_a_video_with_two_labels_is_a_conflict_in_both_rows(good, run):
    shutil.copy(good / "videos/good 0.mp4", good / "videos/copy.mp4")
    with open(good / "train.csv", "a") as file:
        file.write("videos/copy.mp4 2\n")
    _, report, _, _ = run(good / "train.csv", "--clean", good / "clean.csv")
    assert found(report["splits"]["train"]) == {("conflict", 1), ("conflict", 4)}
    assert len((good / "clean.csv").read_text().splitlines()) == 2


def test_files_that_differ_in_the_middle_only_are_no_duplicates(tmp_path):
    ends = bytes(files.EDGE)
    for name, middle in {"a": b"1", "b": b"2", "c": b"2"}.items():
        (tmp_path / name).write_bytes(ends + middle + ends)
    (tmp_path / "d").write_bytes(ends + b"2" + ends[:-1] + b"d")
    (tmp_path / "e").write_bytes(ends + b"22" + ends)
    paths = [str(tmp_path / name) for name in "abcde"]
    facts = files.scan(paths, Look("bytes"), Workers(1))
    assert len({f.ends for f in facts[:3]}) == 1
    known = dict(zip(paths, facts, strict=True))
    files.find_equal(known, Workers(1))
    a, b, c, d, e = (f.sha256 for f in facts)
    assert a != b == c
    assert d == e == ""  # another end, another size: nothing is left to compare


def test_bad_files_are_not_called_duplicates_of_each_other(good, run):
    for name in "ab":
        (good / f"videos/empty_{name}.mp4").touch()
        (good / f"videos/page_{name}.mp4").write_bytes(b"<html>404</html>")
    rows = [f"videos/{name}.mp4 0\n" for name in ("empty_a", "empty_b", "page_a", "page_b")]
    (good / "train.csv").write_text("".join(rows))
    _, report, _, _ = run(good / "train.csv", "--hash", good / "manifest")
    expected = {("empty", 1), ("empty", 2), ("unreadable", 3), ("unreadable", 4)}
    assert found(report["splits"]["train"]) == expected
    assert len((good / "manifest").read_text().splitlines()) == 4


def test_damage_between_the_ends_is_found_when_all_frames_are_decoded(tmp_path):
    video = tmp_path / "damaged.mov"
    write_video(video, codec="png")
    data = video.read_bytes()
    sixth = [at for at in range(len(data)) if data.startswith(b"\x89PNG", at)][5]
    video.write_bytes(data[: sixth + 60] + bytes(100) + data[sixth + 160 :])
    stages = {decode: files.examine(str(video), Look(decode)).stage for decode in ("none", "ends", "all")}
    assert stages == {"none": "", "ends": "", "all": "decode"}


def test_a_crash_and_a_hang_cost_their_files_only_and_these_are_still_hashed(good, monkeypatch):
    real = files.examine

    def examine(path, look):
        if look.decode != "bytes" and "good 0" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        if look.decode != "bytes" and "good 1" in path:
            signal.pause()
        return real(path, look)

    monkeypatch.setattr(files, "examine", examine)
    paths = [str(good / f"videos/good {i}.mp4") for i in range(3)]
    facts = files.scan(paths, Look(sha256=True), Workers(2, timeout=3.0, context="fork"))
    assert [f.stage for f in facts] == ["crash", "hang", ""]
    assert all(len(f.sha256) == 64 for f in facts)
    assert facts[2].frames == 30


def test_pipes_devices_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    paths = [str(tmp_path / "fifo"), "/dev/zero", str(tmp_path)]
    facts = [files.examine(path, Look(sha256=True)) for path in paths]
    assert {(f.stage, f.reason) for f in facts} == {("open", "not a regular file")}


def config(folder: Path) -> list:
    """Splits in `folder` for configs/toy: clips span 8 x 3 frames at 30 fps, 12 at the 15 fps of the videos."""
    for i in range(6):
        write_video(folder / f"videos/{i}.mp4", seed=i)
    write_video(folder / "videos/short.mp4", frames=11, seed=10)
    write_video(folder / "videos/whole_clip.mp4", frames=12, seed=11)
    rows = {
        "train": ["0.mp4 0", "1.mp4 1", "2.mp4 9", "short.mp4 1", "4.mp4 1"],
        "val": ["3.mp4 0", "whole_clip.mp4 1"],
        "test": ["4.mp4 1"],
    }
    for split, lines in rows.items():
        (folder / f"{split}.csv").write_text("".join(f"videos/{line}\n" for line in lines))
    overrides = ["DATA.PATH_TO_DATA_DIR", folder, "DATA.SAMPLING_RATE", 3, "MODEL.NUM_CLASSES", 2]
    return [ROOT / "configs/toy/mvit.yaml", *map(str, overrides)]


def test_a_config_names_all_splits_and_its_clean_csvs_train(tmp_path, run):
    words = config(tmp_path)
    code, report, out, _ = run(*words, "--clean", tmp_path / "clean")
    assert code == 1
    assert {name: found(section) for name, section in report["splits"].items()} == {
        "train": {("broken", 3), ("short", 4), ("leaked", 5)},
        "val": set(),
        "test": set(),
    }
    assert "a clip spans 12" in out
    assert report["splits"]["train"]["labels"]["classes"] == 2

    from videorl import config as tree
    from videorl.engine import build

    cfg = tree.load(
        words[:1], [*words[1:], "DATA.PATH_TO_DATA_DIR", str(tmp_path / "clean"), "DATA.PATH_PREFIX", str(tmp_path)]
    )
    data = build.dataset(cfg, "kinetics", "train")
    assert [path.decode() for path in data.records.paths] == ["videos/0.mp4", "videos/1.mp4", "videos/short.mp4"]
    assert data.records.labels.tolist() == [0, 1, 1]
    assert [data[i][0]["video"].shape[0] for i in range(3)] == [8, 8, 8]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nothing.csv"], "/nothing.csv does not exist; the folder holds train.csv\n"),
        (["train.csv", "DATA.NUM_FRAMES", "8"], "KEY VALUE pairs are for a config"),
        (
            ["train.csv", "--root", "nowhere"],
            "nowhere does not exist; set --root to where the paths in train.csv start",
        ),
        (["train.csv", "--hash", "train.csv"], "line 1 is not"),
        (["train.csv", "--hash", "videos"], "Is a directory"),
        (["train.csv", "--workers", "0"], "--workers"),
        ([ROOT / "configs/toy/mvit.yaml", "DATA.PATH_TO_DATA_DIR", "nowhere"], "set DATA.PATH_TO_DATA_DIR"),
    ],
)
def test_mistakes_of_the_user_are_one_line(good, run, monkeypatch, words, line):
    monkeypatch.chdir(good)
    code, report, _, err = run(*words)
    assert (code, report) == (2, None)
    assert line in err
    assert err.count("\n") == 1
