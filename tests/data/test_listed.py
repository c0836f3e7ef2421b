"""The lists of VideoMAE and V-SWIFT: each layout read right or refused with file and line, and clips with masks."""

import dataclasses
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from tests.video.clips_on_disk import number_of, picture, write_video
from videorl.clip import masks, sampling
from videorl.data.joint import Joint
from videorl.data.labelled import Kinetics
from videorl.data.listed import Excerpt, FrameFolder, Part, VideoList
from videorl.loading.pool import Workers
from videorl.loading.worker import collate
from videorl.prepare import check
from videorl.prepare.files import Look
from videorl.registry import DATASETS, UserError
from videorl.spec import Augment, Clip, Masking, Reading, Spec, Views
from videorl.video.errors import VideoError
from videorl.video.reader import Video, open_video

VALUES = {"num_classes": 5, "root": "", "class_names": "", "val_skip": 1}
PRETRAIN = Masking(0.75)
# The crop that changes nothing but the size: all of a square frame.
SPEC = Spec(Clip(4, 2, 32, 32), augment=Augment(crop_scales=(1.0,), flip=False), patch=(2, 8, 8))


@pytest.fixture
def read(tmp_path):
    """Writes `content` as the csv of a split and reads it."""

    def of(content, *, split="train", spec=SPEC, pretrain=False, **changes):
        (tmp_path / f"{split}.csv").write_text(content)
        spec = dataclasses.replace(spec, masking=PRETRAIN) if pretrain else spec
        return VideoList(spec, split, **{**VALUES, "annotations": str(tmp_path), **changes})

    return of


def parts(data: VideoList) -> list[tuple[Part, int]]:
    r = data.records
    columns = (r.paths.tolist(), r.first.tolist(), r.stop.tolist(), r.folder.tolist(), r.labels.tolist())
    return [(Part(path.decode(), first, stop, folder), label) for path, first, stop, folder, label in zip(*columns)]


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.mp4 0\nb/c.mp4 4\n", [(Part("a.mp4"), 0), (Part("b/c.mp4"), 4)]),
        ("a.mp4,0\nb/c.mp4,4", [(Part("a.mp4"), 0), (Part("b/c.mp4"), 4)]),
        ("a.mp4, 0\r\n\r\nb/c.mp4 , 4\r\n", [(Part("a.mp4"), 0), (Part("b/c.mp4"), 4)]),
        ("my video (1).mp4 3\n", [(Part("my video (1).mp4"), 3)]),
        ("my  video.mp4\t3\n", [(Part("my  video.mp4"), 3)]),
        ("a, b.mp4,3\n", [(Part("a, b.mp4"), 3)]),
        ("a,b.mp4 3\n", [(Part("a,b.mp4"), 3)]),
        ("12345 3\n", [(Part("12345"), 3)]),
        ("frames/1 48 4\nframes/2 1 0\n", [(Part("frames/1", 1, 49, True), 4), (Part("frames/2", 1, 2, True), 0)]),
        ("12345 48 4\n", [(Part("12345", 1, 49, True), 4)]),
        ("a.mp4 2 10 20\na.mp4 3 20 30\n", [(Part("a.mp4", 10, 20), 2), (Part("a.mp4", 20, 30), 3)]),
        ("a b.mp4,2,10,20\n", [(Part("a b.mp4", 10, 20), 2)]),
        ("K400 a b.mp4 2 0 90 300\n", [(Part("a b.mp4", 0, 90), 2)]),
        ("K400,a b.mp4,2,0,300,300\n", [(Part("a b.mp4", 0, 300), 2)]),
        ("K400 12345 2 0 90 300\n", [(Part("12345", 0, 90), 2)]),
        ('"a b.mp4" 2 10 20\n"c"".mp4" 0 1 2\n', [(Part("a b.mp4", 10, 20), 2), (Part('c".mp4', 1, 2), 0)]),
        ('"my set" "a b.mp4" 2 0 90 300\n', [(Part("a b.mp4", 0, 90), 2)]),
        ('"a, b.mp4","3"\n', [(Part("a, b.mp4"), 3)]),
        ("b\\c.mp4 4\n", [(Part("b/c.mp4"), 4)]),
        ("a.mp4 48 4\n", [(Part("a.mp4"), 4)]),
    ],
)
def test_each_layout_with_labels(read, content, expected):
    assert parts(read(content)) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.mp4 0 -1\nb c.mp4 0 -1\n", [Part("a.mp4"), Part("b c.mp4")]),
        ("a.mp4 0 -1\nframes/1 0 48\n", [Part("a.mp4"), Part("frames/1", 0, 48, True)]),
        ("frames/1 1 48\n", [Part("frames/1", 1, 49, True)]),
        ("a.mp4 99\na.mp4 -1\n", [Part("a.mp4"), Part("a.mp4")]),
        ("a.mp4 99 10 20\n", [Part("a.mp4", 10, 20)]),
        ("InternVid a.mp4 -1 0 90 90\n", [Part("a.mp4", 0, 90)]),
    ],
)
def test_to_pre_train_no_label_is_looked_at(read, content, expected):
    assert parts(read(content, pretrain=True)) == [(part, 0) for part in expected]


def test_a_file_or_folder_on_the_disk_tells_what_a_line_means(read, tmp_path):
    (tmp_path / "b.mp4").mkdir()
    (tmp_path / "a.webm").touch()
    assert parts(read("b.mp4 48 4\na 48 3\n")) == [(Part("b.mp4", 1, 49, True), 4), (Part("a.webm"), 3)]
    assert parts(read("a 4\n")) == [(Part("a.webm"), 4)]


def test_lists_of_several_labels_are_not_for_it(read):
    spec = dataclasses.replace(SPEC, space="a", several=frozenset("a"))
    with pytest.raises(UserError, match="reads one label a line, found DATA.MULTI_LABEL True"):
        read("a.mp4 0\n", spec=spec)


def test_the_log_states_the_layout(read, caplog):
    with caplog.at_level(logging.INFO, "videorl"):
        read("a.mp4 2 10 20\nb.mp4 2 10 20\n")
        read("a.mp4,99\n", pretrain=True)
    assert "train.csv: 2 lines `path label sframe eframe`" in caplog.text
    assert "train.csv: 1 lines `path,label`, to pre-train" in caplog.text


@pytest.mark.parametrize(
    ("content", "odd"),
    [
        ("a 48 3\nb 52 9\nc 1 60\n", "2 of 3"),  # `path total label`
        ("a 0 3\nb 1 2\nc 1 4\n", "2 of 3"),
        ("a 0 4\nb 1 4\nc 48 3\n", ""),
        ("a 0 -1\n", ""),
    ],
)
def test_a_list_to_fine_tune_is_suspected_where_it_is_read_to_pre_train(read, caplog, content, odd):
    read(content, pretrain=True)
    warned = f"train.csv: read as `path start total`, but {odd} folders start after frame 1 or have less than 4 frames"
    assert (warned in caplog.text) if odd else not caplog.records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4\n", ":1: expected `path label` or `path total label` or `path label sframe eframe` or"),
        ("\npath,label\na.mp4,1\n", ":2: expected `path label` or"),
        ("", " holds no samples"),
        (
            "a.mp4 1\nb.mp4\nc.mp4 x\n",
            ":2: expected `path label` as on the first line, found 'b.mp4'; line 3: expected",
        ),
        ("a.mp4 1\nb.mp4,1\n", ":2: expected `path label` as on the first line, found 'b.mp4,1'"),
        ("a.mp4 1 2 3\nb.mp4 1\n", ":2: expected `path label sframe eframe` as on the first line, found 'b.mp4 1'"),
        ("a.mp4 5\n", ":1: label 5 is not in 0 … 4; check MODEL.NUM_CLASSES"),
        ("a.mp4 1\nb.mp4 -1\n", ":2: label -1 is not in 0 … 4"),
        ("a.mp4 1 20 10\n", ":1: frames 20 to 10: expected 0 <= sframe < eframe"),
        ("a.mp4 1 10 10\n", ":1: frames 10 to 10: expected"),
        ("a.mp4 1 -1 10\n", ":1: frames -1 to 10: expected"),
        ("s a.mp4 1 0 90 80\n", ":1: frames 0 to 90 of 80: expected 0 <= sframe < eframe <= nframes"),
        ("frames 0 1\n", ":1: expected a folder of at least one frame, found start 1, total 0"),
        ("a.mp4 0 -1\n", "`path 0 -1` lists have no labels, they are to pre-train (MASK.RATIO above 0)"),
        ("../a.mp4 1\n", ":1: '../a.mp4' leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it"),
        ("/a.mp4 1 0 10\n", ":1: '/a.mp4' leaves the video folder"),
        ("a.mp4 1\na.mp4 2\n", ":2: 'a.mp4' has label 2, but 1 on line 1"),
        ("a.mp4 1 0 9\na.mp4 2 0 9\n", ":2: 'a.mp4' has label 2, but 1 on line 1"),
        ("a 1\n" + "b x\n" * 9, " (and 4 more lines)"),
        (
            "a 1\n/abs/a.mp4 0 extra\n",
            ":2: expected `path label` as on the first line, found '/abs/a.mp4 0 extra': label",
        ),
        ("a 1\nb 0 extra\n", ": label 'extra' is no number"),
        ("a 1 0 9\nb 1 x 9\n", "found 'b 1 x 9': sframe 'x' is no number"),
        ("a 1\n" + "/long" * 99 + "/a.mp4 0 extra\n", "found '/long/long/long"),
        ("a 1\n" + "/long" * 99 + "/a.mp4 0 extra\n", "g/long/a.mp4 0 extra': label 'extra'"),
        (
            "a 1\n" + "b 1\n" * 7 + "b.mp4 0 3 4\n",
            ":9: expected `path label` as on the first line, found 'b.mp4 0 3 4': 2 ",
        ),
        ("a,1\nb.mp4,0,3\n", ":2: expected `path,label` as on the first line, found 'b.mp4,0,3'"),
        ("/a 1\n" * 8, ":1: '/a' leaves the video folder; set DATA.ALLOW_OUTSIDE_ROOT True to allow it (8 of 8 lines"),
        ("a 1\n/b 1\n/c x\n../e 1\n", " to allow it (2 of 4 lines leave it); line 3: expected"),
    ],
)
def test_bad_lines_are_refused_with_file_and_line(read, tmp_path, content, message):
    with pytest.raises(UserError) as error:
        read(content)
    assert str(error.value).startswith(str(tmp_path / "train.csv"))
    assert "\n" not in str(error.value)
    assert message in str(error.value)


def test_a_path_may_end_in_a_number_where_a_file_of_the_list_does(read, tmp_path):
    text = "a.mp4 1\nmy clip 3 1\nmy clip 4 2\n"
    with pytest.raises(UserError, match=r"csv:2: .* 2 numbers or more end it, and no file has the name 'my clip 3'"):
        read(text)
    (tmp_path / "my clip 4").touch()
    assert [part.path for part, _ in parts(read(text))] == ["a.mp4", "my clip 3", "my clip 4"]


def test_missing_lists_and_folders_are_refused(read, tmp_path):
    with pytest.raises(UserError, match=r"train\.csv does not exist"):
        VideoList(SPEC, "train", **VALUES, annotations=str(tmp_path))
    with pytest.raises(UserError, match=r"video folder .*none does not exist; set DATA\.PATH_PREFIX"):
        read("a.mp4 1\n", root=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": "spares"}, r"VIDEO_LIST\.SAMPLING 'spares': expected dense or sparse; did you mean sparse\?"),
        ({"frame_name": "img_{:05}.jpg"}, r"VIDEO_LIST\.FRAME_NAME .*: expected a name with one number"),
        ({"frame_name": "%d/%d.jpg"}, r"VIDEO_LIST\.FRAME_NAME"),
        ({"spec": dataclasses.replace(SPEC, views=Views(1, 2))}, "number of spatial crops"),
    ],
)
def test_keys_that_cannot_be_are_refused(read, changes, message):
    with pytest.raises(UserError, match=message):
        read("a.mp4 1\n", **changes)


def test_outside_paths_can_be_allowed_and_start_where_they_say(read):
    spec = dataclasses.replace(SPEC, reading=Reading(allow_outside_root=True))
    assert read("/elsewhere/a.mp4 1\n", spec=spec).path(0) == "/elsewhere/a.mp4"


def test_classes_skipped_lines_and_fingerprint(read, tmp_path):
    (tmp_path / "classes.json").write_text('{"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}')
    assert read("a.mp4 1\n").classes == ("a", "b", "c", "d", "e")
    assert read("a.mp4 1\n", pretrain=True).classes == ()
    many = "".join(f"{i}.mp4 0\n" for i in range(7))
    assert [len(read(many, split=split, val_skip=3)) for split in ("train", "val")] == [7, 3]
    texts = ["a 1 0 9\nb 1 0 9\n", "a 1 1 9\nb 1 0 9\n", "a 1 0 8\nb 1 0 9\n", "b 1 0 9\na 1 0 9\n", "a 1\nb 1\n"]
    assert len({read(text).fingerprint for text in texts}) == len(texts)
    again = pickle.loads(pickle.dumps(read(texts[0])))
    assert again.fingerprint == read(texts[0].replace("\n", "\r\n")).fingerprint


# --- which frames ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A square video of 60 numbered frames, and frames 1 … 60 of it as pictures."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", range(60), size=(96, 96))
    (folder / "frames").mkdir()
    for n in range(60):
        Image.fromarray(picture(n, 96, 96)).save(folder / "frames" / f"img_{n + 1:05d}.png")
    return folder


def numbers(item: dict) -> list[int]:
    return [number_of(frame.permute(1, 2, 0).numpy()) for frame in item.get("pixels", item.get("video"))]


def drawn(data, i: int) -> np.random.Generator:
    return np.random.default_rng([data.spec.seed, data.epoch, i, 0])


LARGE = dataclasses.replace(SPEC, clip=Clip(4, 2, 96, 96), patch=(2, 16, 16))
PNG = {"frame_name": "img_%05d.png"}


def test_dense_clips_take_raw_frames_and_sparse_ones_parts(read, folder):
    spec = dataclasses.replace(LARGE, clip=dataclasses.replace(LARGE.clip, fps=15.0))  # changes nothing
    dense = read("a.mp4 1\n", root=str(folder), spec=spec)
    sparse = read("a.mp4 1\n", root=str(folder), spec=spec, sampling="sparse")
    for epoch in range(3):
        dense.epoch = sparse.epoch = epoch
        expected = sampling.strided_train(60, frames=4, rate=2, rng=drawn(dense, 0))
        assert numbers(dense[0][0]) == expected.tolist()
        assert numbers(sparse[0][0]) == sampling.sparse_train(60, frames=4, rng=drawn(sparse, 0)).tolist()


def test_several_clips_of_a_video_that_is_read_once(read, folder, monkeypatch):
    """The first is the one that there would be alone; each has its copies."""
    reads = []
    monkeypatch.setattr(Video, "parts", lambda video, which, of=Video.parts: reads.append(which) or of(video, which))
    spec = dataclasses.replace(LARGE, augment=dataclasses.replace(LARGE.augment, clips=3, copies=6))
    data = read("a.mp4 1\n", root=str(folder), spec=spec)
    found, rng = [numbers(item) for item in data[0]], drawn(data, 0)
    expected = [sampling.strided_train(60, frames=4, rate=2, rng=rng).tolist() for _ in range(3)]
    assert found == [expected[0], expected[0], expected[1], expected[1], expected[2], expected[2]]
    assert len({tuple(clip) for clip in found}) == 3
    assert len(reads) == 1


def test_test_views_of_both_samplings(read, folder):
    spec = dataclasses.replace(LARGE, views=Views(2, 1), augment=Augment(scales=(96, 96)))
    dense = read("a.mp4 1\n", split="test", root=str(folder), spec=spec)[0]
    sparse = read("a.mp4 1\n", split="test", root=str(folder), spec=spec, sampling="sparse")[0]
    assert [numbers(view) for view in dense] == [[0, 2, 4, 6], [52, 54, 56, 58]]
    assert [numbers(view) for view in sparse] == [[0, 15, 30, 45], [7, 22, 37, 52]]
    assert [view["labels"].item() for view in dense] == [1, 1]


@pytest.mark.parametrize("sampling", ["dense", "sparse"])
@pytest.mark.parametrize("line", ["a.mp4 1 20 33", "x a.mp4 1 20 33 60", "a.mp4 1 20 23", "frames 21 13"])
def test_a_clip_never_leaves_its_part(read, folder, sampling, line):
    pretrain = line.startswith("frames")
    stop = 23 if " 23" in line else 33
    data = read(line, root=str(folder), spec=LARGE, sampling=sampling, pretrain=pretrain, **PNG)
    found = set()
    for epoch in range(25):
        data.epoch = epoch
        found |= set(numbers(data[0][0]))
    assert min(found) >= 20
    assert max(found) < stop
    views = dataclasses.replace(LARGE, views=Views(3, 1), augment=Augment(scales=(96, 96)))
    test = read(line, split="test", root=str(folder), spec=views, sampling=sampling, pretrain=pretrain, **PNG)[0]
    shown = [n for view in test for n in numbers(view)]
    assert min(shown) == 20
    assert stop - 4 <= max(shown) < stop


def test_a_folder_of_frames_gives_the_clips_of_its_video(read, folder):
    # 60 pictures, the first of which has number 1 in both layouts of V2
    lists = {"a.mp4 1\n": {}, "frames 60 1\n": {}, "frames 1 60\n": {"pretrain": True}}
    found = [numbers(read(text, root=str(folder), spec=LARGE, **PNG, **how)[0][0]) for text, how in lists.items()]
    assert found[0] == found[1] == found[2]
    assert -1 not in found[0]


def test_pictures_are_read_exactly_in_any_order_and_repeated(folder):
    frames = FrameFolder(str(folder / "frames"), "img_%05d.png", 1, 60, 10**6).frames(np.array([7, 3, 3, 59]))
    assert frames.shape == (4, 96, 96, 3)
    assert frames.dtype == torch.uint8
    for frame, number in zip(frames, (7, 3, 3, 59), strict=True):
        assert torch.equal(frame, torch.from_numpy(picture(number, 96, 96)))


def test_pictures_that_cannot_be_read(tmp_path, folder):
    def frames(*indices, max_pixels=10**6):
        return FrameFolder(str(tmp_path), "%d.png", 1, 9, max_pixels).frames(np.array(indices))

    Image.fromarray(picture(0, 40, 30)).save(tmp_path / "1.png")
    Image.fromarray(picture(0, 40, 32)).save(tmp_path / "2.png")
    whole = (folder / "frames" / "img_00001.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "4.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for wanted, stage, message in (
        ((8,), "open", r"open: no picture /.*/9\.png; see VIDEO_LIST\.FRAME_NAME"),
        ((0, 1), "decode", "frame 1 has another size than frame 0"),
        ((2,), "decode", r"3\.png: .*truncated"),
        ((3,), "decode", r"4\.png: .*cannot identify"),
    ):
        with pytest.raises(VideoError, match=message) as error:
            frames(*wanted)
        assert error.value.stage == stage
    with pytest.raises(VideoError, match=r"v99: open: folder does not exist"):
        FrameFolder(str(tmp_path / "v99"), "%d.png", 1, 9, 10**6).frames(np.array([0]))
    with pytest.raises(VideoError, match="40x30 pixels per frame, more than the limit of 1199"):
        frames(0, max_pixels=1199)
    assert frames(0, max_pixels=1200).shape == (1, 30, 40, 3)


def test_a_video_that_ends_early_ends_its_part(folder):
    with open_video(folder / "a.mp4", "pyav") as video:
        assert Excerpt(video, 50, 90).num_frames == 10
        with pytest.raises(VideoError, match="the list names frame 60 of 60") as error:
            Excerpt(video, 60, 90)
        assert error.value.stage == "index"


# --- masks -----------------------------------------------------------------------------------------------------------

COPIES = dataclasses.replace(LARGE, augment=Augment(crop_scales=(1, 0.875, 0.75, 0.66), copies=3))


def tokens(item: dict) -> tuple:
    return tuple(item["visible"].tolist()), tuple(item["masked"].tolist())


def test_one_decode_gives_copies_with_crops_and_masks_of_their_own(read, folder, monkeypatch):
    asked = []
    parts = Video._read_parts
    monkeypatch.setattr(Video, "_read_parts", lambda self, wanted: (asked.append(len(wanted)), parts(self, wanted))[1])
    items = read("a.mp4 0 -1\n", root=str(folder), spec=COPIES, pretrain=True)[0]
    assert asked == [4]
    assert len(items) == len({tokens(item) for item in items}) == 3
    for k, item in enumerate(items):
        assert set(item) == {"pixels", "visible", "masked", "labels", "index", "view"}
        assert (item["pixels"].shape, item["pixels"].dtype) == ((4, 3, 96, 96), torch.uint8)
        assert item["visible"].dtype == item["masked"].dtype == torch.int64
        assert sorted([*item["visible"], *item["masked"]]) == list(range(2 * 6 * 6))
        assert len(item["visible"]) == masks.lengths(dataclasses.replace(COPIES, masking=PRETRAIN))[0] == 2 * 9
        assert item["view"] == k
    batch = collate(items)
    assert {name: tuple(batch[name].shape) for name in ("pixels", "visible", "masked")} == {
        "pixels": (3, 4, 3, 96, 96),
        "visible": (3, 18),
        "masked": (3, 54),
    }


@pytest.mark.parametrize("dataset", ["video_list", "kinetics"])
def test_masks_change_nothing_else(read, folder, tmp_path, dataset):
    def items(masking, epoch):
        spec = dataclasses.replace(COPIES, masking=masking)
        values = {**VALUES, "annotations": str(tmp_path), "root": str(folder)}
        if dataset == "kinetics":
            data = Kinetics(spec, "train", **values, separator=" ", multi_label=False, offset=False)
        else:
            data = VideoList(spec, "train", **values)
        data.epoch = epoch
        return data[0], data.fingerprint

    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    for epoch in range(2):
        plain, fingerprint = items(Masking(), epoch)
        masked, of_masked = items(PRETRAIN, epoch)
        assert fingerprint == of_masked
        for one, other in zip(plain, masked, strict=True):
            assert torch.equal(one["video"], other["pixels"])
            assert set(one) == set(other) - {"pixels", "visible", "masked"} | {"video"}


def test_masks_depend_on_seed_epoch_sample_and_copy_alone(read, folder):
    def found(seed, epoch):
        spec = dataclasses.replace(COPIES, seed=seed)
        data = read("a.mp4 0 -1\n" * 2, root=str(folder), spec=spec, pretrain=True)
        data.epoch = epoch
        return [tokens(item) for i in range(2) for item in data[i]]

    all_ = [found(seed, epoch) for seed in range(2) for epoch in range(2)]
    assert len({mask for masks_ in all_ for mask in masks_}) == 2 * 2 * 2 * 3
    assert found(1, 1) == all_[3]


def test_views_keep_their_masks_in_all_epochs(read, folder):
    spec = dataclasses.replace(LARGE, views=Views(2, 3), augment=Augment(scales=(96, 96)))
    data = read("a.mp4 0 -1\n" * 2, split="val", root=str(folder), spec=spec, pretrain=True)
    first = [tokens(item) for i in range(2) for item in data[i]]
    data.epoch = 7
    assert [tokens(item) for i in range(2) for item in data[i]] == first
    assert len(set(first)) == 2 * 2 * 3


def test_several_lists_make_one_data_set(read, folder):
    spec = dataclasses.replace(COPIES, labels={"a": 5, "b": 5})
    data = read("a.mp4 0 -1\n", root=str(folder), spec=spec, pretrain=True)
    joint = Joint(data.spec, {"a": data, "b": data}, {"a": 1, "b": 1})
    found = [item for i in range(2) for item in joint[i]]
    assert len({tokens(item) for item in found}) == 6


def test_masks_fit_the_size_of_test_clips_or_are_refused(read):
    spec = dataclasses.replace(LARGE, clip=Clip(4, 2, 96, 100))
    read("a.mp4 0 -1\n", spec=spec, pretrain=True)
    with pytest.raises(UserError, match=r"\(4, 100, 100\): expected multiples"):
        read("a.mp4 0 -1\n", spec=spec, pretrain=True, split="val")


# --- check_dataset ---------------------------------------------------------------------------------------------------


def checked(text, folder, tmp_path, masking=PRETRAIN, **changes):
    (tmp_path / "train.csv").write_text(text)
    values = {**VALUES, "annotations": str(tmp_path), "root": str(folder), "sampling": "dense", **changes}
    upper = {key.upper(): value for key, value in {**values, "frame_name": "img_%05d.jpg"}.items()}
    spec = dataclasses.replace(LARGE, masking=masking)
    split = check.read_split(DATASETS["video_list"], spec, "train", upper)
    report = check.check([split], Look(), Workers(1))
    return report.sections[0]


def kinds(section) -> list[tuple[str, int]]:
    return [(finding.kind, finding.line) for finding in section.findings]


def test_lists_can_be_checked(folder, tmp_path):
    parts_ = checked("a.mp4 1 0 9\na.mp4 2 9 20\na.mp4 1 0 9\na.mp4 1 9\nb.mp4 1 0 9\n", folder, tmp_path, Masking())
    assert kinds(parts_) == [("broken", 4), ("unreadable", 5), ("duplicate", 3)]
    assert parts_.labels["rows_by_class"] == {"1": 3, "2": 1}
    unlabelled = checked("a.mp4 0 -1\n", folder, tmp_path)
    assert kinds(unlabelled) == []
    assert unlabelled.labels == {}
    with pytest.raises(UserError, match=r"train\.csv:2: 'frames' is a folder of frames"):
        checked("a.mp4 0 -1\nframes 1 60\n", folder, tmp_path)


def test_short_videos_are_those_of_too_few_frames_whatever_the_rate(folder, tmp_path):
    write_video(folder / "short.mp4", range(7), size=(96, 96))
    assert kinds(checked("short.mp4 0 -1\n", folder, tmp_path)) == [("short", 1)]
    assert kinds(checked("short.mp4 0 -1\n", folder, tmp_path, sampling="sparse")) == []
