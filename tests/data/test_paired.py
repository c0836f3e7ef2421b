"""YouCook2, MSR-VTT and HMDB-51 against the golden cases of MIL-NCE, and what they do with files that are wrong."""

import hashlib
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.data.narrated import FOLDER, copy_to, reading_words_of, spec
from tests.video.clips_on_disk import write_video
from videorl.data.paired import HMDB51, MSRVTT, YouCook2, window_starts
from videorl.registry import UserError
from videorl.video.errors import VideoError
from videorl.video.spans import PastEnd

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case, unpack_frames  # noqa: E402

EXPECTED = load_case(GOLDEN / "data/howto100m_eval_clips.pt")["expected"]


def youcook(folder: Path = FOLDER, of=None, **keys) -> YouCook2:
    usual = {"annotations": str(folder / "youcook.csv"), "video_root": str(folder / "videos")}
    return YouCook2(reading_words_of(folder, of or spec(4)), "val", **usual | keys)


def msrvtt(folder: Path = FOLDER, of=None, **keys) -> MSRVTT:
    usual = {"annotations": str(folder / "msrvtt.csv"), "video_root": str(folder / "videos")}
    return MSRVTT(reading_words_of(folder, of or spec(4)), "test", **usual | keys)


def hmdb(folder: Path = FOLDER, of=None, **keys) -> HMDB51:
    usual = {"annotations": str(folder / "hmdb.csv"), "video_root": str(folder / "hmdb")}
    return HMDB51(of or spec(4), "test", **usual | keys)


def check_windows(items: list[dict], index: int, windows: list[dict]) -> None:
    assert [(int(item["index"]), int(item["view"])) for item in items] == [(index, k) for k in range(len(windows))]
    for item, window in zip(items, windows):
        assert torch.equal(item["video"][window["frames"]].transpose(0, 1), unpack_frames(window["pixels"]))
        clip = item["video"].transpose(0, 1).contiguous().numpy()  # [3, T, S, S]
        assert hashlib.sha256(clip.tobytes()).hexdigest() == window["sha256"]


@pytest.mark.parametrize(("make", "name"), [(youcook, "youcook"), (msrvtt, "msrvtt")])
def test_windows_and_texts_are_the_published_ones(make, name):
    data = make()
    assert len(data) == len(EXPECTED[name])
    for i, expected in enumerate(EXPECTED[name]):
        check_windows(data[i], i, expected["clips"])
        assert all(torch.equal(item["text"], expected["text"][None]) for item in data[i])


def test_windows_of_hmdb_are_the_published_ones():
    data = hmdb()
    for i, expected in enumerate(EXPECTED["hmdb"]):
        check_windows(data[i], i, expected["clips"])
        item = data[i][0]
        assert data.classes[item["labels"]] == expected["label"]
        assert item["splits"].tolist() == [expected[f"split{k}"] for k in (1, 2, 3)]


def test_starts_of_windows():
    rows = [(2, 10), (1, 3)]
    for (start, end), expected in zip(rows, EXPECTED["youcook_starts"]):
        assert window_starts(start, end, 3.2, 4) == pytest.approx(expected, abs=0)
    assert window_starts(0, 10, 3.2, 1) == [0]


def test_mirrored_windows_of_hmdb_follow_their_originals():
    plain, mirrored = hmdb()[0], hmdb(of=spec(4, 2))[0]
    assert [int(item["view"]) for item in mirrored] == list(range(8))
    for k, item in enumerate(plain):
        assert torch.equal(mirrored[2 * k]["video"], item["video"])
        assert torch.equal(mirrored[2 * k + 1]["video"], item["video"].flip(3))
    assert not torch.equal(mirrored[0]["video"], mirrored[1]["video"])


def test_a_clip_shorter_than_a_window_ends_black():
    of = replace(spec(2), clip=replace(spec().clip, frames=120))
    first, second = hmdb(of=of)[0]
    shown = first["video"].flatten(1).amax(1) > 0
    assert shown.tolist() == [True] * 90 + [False] * 30
    assert torch.equal(first["video"], second["video"])


def test_windows_past_the_last_picture_are_black(tmp_path):
    """3.3 seconds of pictures, 12 of sound: windows at 0, 2.8, 5.6 and 8.4 s."""
    folder = copy_to(tmp_path / "set")
    (file,) = {msrvtt(folder).path(0)}
    write_video(Path(file), range(100), tone=12.0)
    shown = [item["video"].flatten(1).amax(1) > 0 for item in msrvtt(folder)[0]]
    assert [int(frames.sum()) for frames in shown] == [16, 3, 0, 0]


@pytest.mark.parametrize(("start", "end", "shown"), [(8, 99, [True, False]), (98, 99, None)])
def test_segments_past_the_end(tmp_path, start, end, shown):
    folder = copy_to(tmp_path / "set")
    (folder / "youcook.csv").write_text(f"end,start,task,text,video_id\n{end},{start},226,add oil,ycA\n")
    data = youcook(folder, spec(2))
    if shown is None:
        with pytest.raises(PastEnd, match="shows nothing from second 98 on") as error:
            data[0]
        assert isinstance(error.value, VideoError)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    else:
        assert [bool(item["video"].any()) for item in data[0]] == shown


@pytest.mark.parametrize("extension", ["mkv", "webm"])
def test_a_youcook_video_may_have_another_extension(tmp_path, extension):
    folder = copy_to(tmp_path / "set")
    file = folder / "videos/validation/226/ycA.mp4"
    file.rename(file.with_suffix(f".{extension}"))
    data = youcook(folder)
    assert data.path(0) == str(file.with_suffix(f".{extension}"))
    check_windows(data[0], 0, EXPECTED["youcook"][0]["clips"])


def test_texts_of_one_clip_share_a_group(tmp_path):
    folder = copy_to(tmp_path / "set")
    (folder / "msrvtt.csv").write_text("video_id,sentence\nvideo1,add oil\nb,mix\nvideo1,heat\nb,mix\nc,cut\n")
    assert msrvtt(folder).groups == [0, 1, 0, 1, 4]
    assert int(msrvtt(folder)[2][3]["group"]) == 0
    rows = ["4,0,226,add,ycA", "4,1,226,mix,ycA", "4,0,226,heat,ycA", "4,0,226,heat,ycB"]
    (folder / "youcook.csv").write_text("end,start,task,text,video_id\n" + "\n".join(rows) + "\n")
    assert youcook(folder).groups == [0, 1, 0, 3]


@pytest.mark.parametrize("make", [youcook, msrvtt, hmdb])
def test_a_missing_video_is_named(tmp_path, make):
    folder = copy_to(tmp_path / "set")
    for file in [*folder.glob("videos/**/*.mp4"), *folder.glob("hmdb/**/*.avi")]:
        file.unlink()
    with pytest.raises(VideoError) as error:
        make(folder)[0]
    assert (error.value.stage, error.value.path) == ("open", make(folder).path(0))


@pytest.mark.parametrize(
    ("make", "file", "text", "said"),
    [
        (youcook, "youcook.csv", "start,end,task,text\n1,2,3,a\n", "no column video_id"),
        (youcook, "youcook.csv", "end,start,task,text,video_id\n1,two,3,a,b\n", "row 1: start 'two', end '1'"),
        (youcook, "youcook.csv", "end,start,task,text,video_id\n1,nan,3,a,b\n", "row 1: start 'nan', end '1': "),
        (youcook, "youcook.csv", "end,start,task,text,video_id\ninf,1,3,a,b\n", "row 1: start '1', end 'inf': "),
        (youcook, "youcook.csv", "end,start,task,text,video_id\n1,2,3,a,b\n", "the end not before the start"),
        (youcook, "youcook.csv", "end,start,task,text,video_id\n1,2,../../..,a,b\n", "leaves the video folder"),
        (msrvtt, "msrvtt.csv", "video_id,sentence\n", "holds no rows"),
        (hmdb, "hmdb.csv", "video_id,label,split1,split2,split3\na.avi,run_test,0,1,3\n", "row 1: splits 0, 1, 3"),
        (hmdb, "hmdb.csv", "video_id,label,split1,split2,split3\na.avi,run_test,0,1\n", "line 2: 4 cells, expected 5"),
    ],
)
def test_lists_that_are_wrong(tmp_path, make, file, text, said):
    folder = copy_to(tmp_path / "set")
    (folder / file).write_text(text)
    with pytest.raises(UserError) as error:
        make(folder)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("make", "crops", "said"),
    [(youcook, 3, "expected 1;"), (msrvtt, 2, "expected 1;"), (hmdb, 3, r"expected 1 or 2 \(mirrored\); set CROPS in")],
)
def test_crops_that_do_not_exist(make, crops, said):
    with pytest.raises(UserError, match=f"CROPS {crops}: {said}"):
        make(of=spec(4, crops))


def test_they_are_not_trained_on():
    with pytest.raises(UserError, match="YouCook2 has no split 'train'"):
        YouCook2(
            reading_words_of(FOLDER, spec()),
            "train",
            annotations=str(FOLDER / "youcook.csv"),
            video_root=str(FOLDER / "videos"),
        )


def test_the_fingerprint_is_that_of_the_list(tmp_path):
    folder = copy_to(tmp_path / "set")
    assert youcook(folder).fingerprint == youcook().fingerprint
    (folder / "youcook.csv").write_text((folder / "youcook.csv").read_text().replace("add oil", "add egg"))
    assert youcook(folder).fingerprint != youcook().fingerprint
