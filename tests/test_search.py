"""Text-to-video search: the ranking, what is kept between queries, and what is said about what cannot be searched."""

import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.test_report import HOSTILE, Page
from videorl import checkpoint, config
from videorl.cli import search as tool
from videorl.data.text import ClipTokenizer, WordTokenizer
from videorl.engine import build
from videorl.registry import UserError
from videorl.search import cache, clock, embed, ranked, windows, words_of
from videorl.search import page as pages
from videorl.search.windows import starts
from videorl.video import folder
from videorl.video.errors import VideoError
from videorl.video.folder import File
from videorl.video.spans import Crop, Spans

ROOT = Path(__file__).parents[1]
YAML = str(ROOT / "configs/HowTo100M/S3D_MILNCE.yaml")
WORDS = ["cut", "the", "tomato", "stir", "pan"]


def video(path: Path, seed: int, frames: int = 24) -> Path:
    """Ten noisy frames a second."""
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(frames):
            blocks = random.integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(blocks, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    """The settings of a small S3D and its dictionary, and the file of its random weights."""
    place = tmp_path_factory.mktemp("model")
    np.save(place / "dict.npy", np.array(WORDS))
    words = {
        "DATA.NUM_FRAMES": 4,
        "DATA.TEST_CROP_SIZE": 32,
        "S3D.WIDTH": 0.125,
        "S3D.EMBED_DIM": 16,
        "S3D.VOCABULARY": len(WORDS) + 1,
        "TEXT.DICT": place / "dict.npy",
        "DATA_LOADER.NUM_WORKERS": 0,
        "NUM_GPUS": 0,
        "TEST.BATCH_SIZE": 4,
    }
    words = [str(word) for pair in words.items() for word in pair]
    cfg = config.load([YAML], words)
    built = build.model(cfg).train()
    with torch.no_grad():  # else the running statistics of batch norm fit nothing, and all windows look the same
        for _ in range(30):
            built(torch.rand(8, 3, 4, 32, 32))
    checkpoint.save(place / "weights.pyth", {"model_state": built.state_dict()})
    return [*words, "--checkpoint", str(place / "weights.pyth")]


@pytest.fixture
def videos(tmp_path) -> Path:
    """Three videos, one in a folder below, and a text file."""
    place = tmp_path / "videos"
    (place / "below").mkdir(parents=True)
    video(place / "a.mp4", 0)
    video(place / "b.AVI", 1, frames=11)
    video(place / "below" / "c.mkv", 2, frames=5)
    (place / "notes.txt").write_text("no video")
    return place


@pytest.fixture
def find(model, videos, tmp_path, monkeypatch, capsys):
    """find(query, …) runs the tool and returns what it prints; find.read lists the videos whose windows it decoded."""
    monkeypatch.chdir(tmp_path)
    read: list[str] = []

    class Counted(Spans):
        def __init__(self, path, **how):
            read.append(os.path.relpath(path, videos))
            super().__init__(path, **how)

    monkeypatch.setattr(windows, "Spans", Counted)

    def find(query: str, *words) -> str:
        read.clear()
        common = ["--cfg", YAML, "--cache", str(tmp_path / "cache"), query, str(videos), *model]
        tool.main([*common, *map(str, words)])
        return capsys.readouterr().out

    find.read = read
    find.error = lambda: capsys.readouterr().err
    return find


def table_of(out: str) -> list[list[str]]:
    """rank, score, video, start, end of each line."""
    lines = out[out.index("rank ") :].splitlines()[1:]
    rows = [line.replace(" - ", " ").rsplit(maxsplit=2) for line in lines if line[:4].strip().isdigit()]
    return [[*head.split(maxsplit=2), start, end] for head, start, end in rows]


def by_hand(model: list[str], query: str, where: Path, windows: list[tuple[str, float]]) -> list[float]:
    """The score of every window, one forward pass for each."""
    cfg = config.load([YAML], model[:-2])
    built = build.model(cfg).eval()
    built.load_state_dict(checkpoint.read(Path(model[-1]))["model_state"])
    text = WordTokenizer(cfg.TEXT.DICT, 20)([query])
    scores = []
    for path, start in windows:
        with Spans(where / path) as opened, torch.no_grad():
            clip = opened.clip(start, frames=4, fps=5.0, crop=Crop(32))
            found = built(clip.permute(1, 0, 2, 3)[None] / 255, text)
        scores.append(float(found["video_embed"][0] @ found["text_embed"][0, 0]))
    return scores


# Of 0.8 s: 4 frames, 5 a second
WINDOWS = [("a.mp4", 0.0), ("a.mp4", 0.8), ("a.mp4", 1.6), ("b.AVI", 0.0), ("b.AVI", 0.3), ("below/c.mkv", 0.0)]
ENDS = [0.8, 1.6, 2.4, 0.8, 1.1, 0.5]


@pytest.mark.parametrize("query", ["cut the tomato", "stir"])
def test_ranking_is_that_of_brute_force(find, model, videos, query):
    scores = by_hand(model, query, videos, WINDOWS)
    assert np.ptp(scores) > 1e-3, "windows must differ to be ranked"
    order = np.argsort(-np.array(scores))
    wanted = [[WINDOWS[k][0], clock(WINDOWS[k][1]), clock(ENDS[k])] for k in order]
    found = table_of(find(query, "--per-video", 9))
    assert [row[2:] for row in found] == wanted
    assert [row[0] for row in found] == [str(k) for k in range(1, 7)]
    np.testing.assert_allclose([float(row[1]) for row in found], np.array(scores)[order], atol=1e-3)

    best = table_of(find(query))
    assert sorted(row[2] for row in best) == ["a.mp4", "b.AVI", "below/c.mkv"]
    assert [row[2:] for row in best] == [row for k, row in enumerate(wanted) if row[0] not in np.array(wanted)[:k, 0]]
    assert table_of(find(query, "--top", 2)) == best[:2]


def test_second_query_decodes_nothing(find, videos):
    find("cut")
    assert sorted(find.read) == sorted(path for path, _ in WINDOWS)
    out = find("stir the pan")
    assert find.read == []
    assert len(table_of(out)) == 3


def test_new_and_changed_videos_alone_are_embedded(find, videos):
    before = {row[2]: row[1] for row in table_of(find("cut"))}
    video(videos / "b.AVI", 7, frames=11)
    video(videos / "new.mp4", 8, frames=8)
    (videos / "a.mp4").unlink()
    after = {row[2]: row[1] for row in table_of(find("cut"))}
    assert find.read == ["b.AVI", "b.AVI", "new.mp4"]
    assert after.keys() == {"b.AVI", "below/c.mkv", "new.mp4"}
    assert after["b.AVI"] != before["b.AVI"]
    assert after["below/c.mkv"] == before["below/c.mkv"]


def test_other_weights_or_windows_have_their_own_cache(find, model, tmp_path):
    find("cut")
    assert "best of 8 windows" in find("cut", "--stride", 0.4)
    assert len(find.read) == 8
    state = checkpoint.read(Path(model[-1]))
    state["model_state"]["fc.bias"] += 1
    checkpoint.save(tmp_path / "other.pyth", state)
    find("cut", "--checkpoint", tmp_path / "other.pyth")
    assert len(find.read) == 6
    find("cut")
    assert find.read == []


def test_a_killed_search_keeps_what_it_saved(find, videos, tmp_path, monkeypatch):
    """What stands on the disk while the last video is being read, before anything could be written on the way out."""
    on_disk = []
    read = windows.Windows.__getitem__

    def stop(self, i):
        if self.path(i).endswith("c.mkv"):
            (file,) = (tmp_path / "cache").glob("*.npz")
            on_disk.append(file.read_bytes())
            raise KeyboardInterrupt
        return read(self, i)

    monkeypatch.setattr(embed, "SAVE_EVERY", 1)
    monkeypatch.setattr(windows.Windows, "__getitem__", stop)
    with pytest.raises(SystemExit) as end:
        find("cut", "TEST.BATCH_SIZE", "1")
    assert end.value.code == 130
    monkeypatch.setattr(windows.Windows, "__getitem__", read)
    (file,) = (tmp_path / "cache").glob("*.npz")
    file.write_bytes(on_disk[0])
    assert len(table_of(find("cut"))) == 3
    assert find.read == ["below/c.mkv"]


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:300] + b"x" + b[301:]])
def test_a_broken_cache_is_made_anew(find, tmp_path, spoil):
    wanted = table_of(find("cut"))
    (file,) = (tmp_path / "cache").glob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    out = find("cut")
    assert "is broken" in out
    assert table_of(out) == wanted
    assert file.read_bytes() == whole


def test_without_a_place_for_the_cache_it_still_searches(find, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    out = find("cut")
    assert "the cache of embeddings cannot be written" in out
    assert len(table_of(out)) == 3


def test_unreadable_files_are_named_and_counted(find, videos, tmp_path):
    (videos / "empty.mp4").touch()
    (videos / "text.mkv").write_text("not a video")
    (videos / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    for _ in range(2):  # also when the others come from the cache
        out = find("cut")
        assert "3 file(s) that cannot be read" in out
        assert "  empty.mp4: open: empty file" in out
        assert "  text.mkv: open: not a video" in out
        assert "  gone.mp4: open: No such file" in out
        assert len(table_of(out)) == 3
    page = Page((tmp_path / "search.html").read_text())
    assert "empty.mp4 open: empty file" in " ".join(page.text.split())


def test_a_damaged_window_does_not_cost_the_others(find, videos):
    file = videos / "a.mp4"
    whole = file.read_bytes()
    with av.open(str(file)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(whole)
    for pos, size in packets[12:]:
        data[pos : pos + size] = bytes(size)
    file.write_bytes(data)
    for _ in range(2):
        out = find("cut", "--per-video", 9)
        (line,) = (line for line in out.splitlines() if line.startswith("  a.mp4: "))
        assert "of 3 windows: decode: " in line
        assert "a.mp4" in {row[2] for row in table_of(out)}


def test_a_video_that_was_bad_in_part_is_read_again(find, monkeypatch):
    read = windows.Windows.__getitem__

    def failing(self, i):
        if self.path(i).endswith("a.mp4") and self.windows[i][1] > 0:
            raise VideoError(self.path(i), "decode", "Input/output error")
        return read(self, i)

    monkeypatch.setattr(windows.Windows, "__getitem__", failing)
    out = find("cut")
    assert "  a.mp4: 2 of 3 windows: decode: Input/output error" in out
    assert "best of 4 windows of 3 videos" in out
    monkeypatch.setattr(windows.Windows, "__getitem__", read)
    out = find("cut")
    assert "best of 6 windows of 3 videos" in out
    assert "cannot be read" not in out
    assert find.read == ["a.mp4"] * 3


def test_the_dictionary_s_place_changes_no_embedding_of_a_video(find, tmp_path):
    find("cut")
    np.save(tmp_path / "same.npy", np.array(WORDS))
    find("cut", "TEXT.DICT", tmp_path / "same.npy")
    assert find.read == []


def test_upper_case_counts_where_the_dictionary_has_it(tmp_path):
    np.save(tmp_path / "dict.npy", np.array(["cut", "Cut", "pan"]))
    words, notes = words_of("Cut PAN Oil", WordTokenizer(str(tmp_path / "dict.npy"), 4))
    assert words.tolist() == [2, 3, 0, 0]
    assert notes == ["not in the dictionary: Oil"]


def test_other_tokenizers_number_a_query_by_themselves():
    tokens = ClipTokenizer(8)
    words, notes = words_of("Cut PAN Oil", tokens)
    assert torch.equal(words, tokens(["Cut PAN Oil"])[0])
    assert not notes


def test_nothing_readable_is_an_error(find, videos):
    for name in ("a.mp4", "b.AVI", "below/c.mkv"):
        (videos / name).write_bytes(b"")
    with pytest.raises(SystemExit):
        find("cut")
    assert "none of 3 videos can be read; first: a.mp4: open: empty file" in find.error()


def test_a_file_that_takes_its_process_down_costs_itself_only(find, videos, monkeypatch):
    """Files are looked at, embedded and shown in workers alone."""
    main = os.getpid()

    def guarded(read):
        def call(path, *args, **kwargs):
            assert os.getpid() != main
            if "b.AVI" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
            return read(path, *args, **kwargs)

        return call

    for module, name in ((windows, "open_video"), (windows, "Spans"), (pages, "Spans")):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))
    out = find("cut", "DATA_LOADER.NUM_WORKERS", 1)
    assert "  b.AVI: crash: " in out
    assert sorted(row[2] for row in table_of(out)) == ["a.mp4", "below/c.mkv"]


def test_two_searches_may_write_one_cache(tmp_path, monkeypatch):
    """The second one writes all of its file while the first one is at it: either is whole."""
    video = cache.Video(1.0, np.zeros(1), np.ones((1, 2), np.float32))
    first, second = (cache.Cache(tmp_path / "cache", tmp_path, "key") for _ in "ab")
    first.videos, second.videos = {File("a", 1, 1): video}, {File("b", 1, 1): video}
    save = np.savez

    def interrupted(out, **arrays):
        monkeypatch.setattr(np, "savez", save)
        second.save()
        assert list(cache.Cache(tmp_path / "cache", tmp_path, "key").videos) == [File("b", 1, 1)]
        save(out, **arrays)

    monkeypatch.setattr(np, "savez", interrupted)
    first.save()
    assert list(cache.Cache(tmp_path / "cache", tmp_path, "key").videos) == [File("a", 1, 1)]
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".npz"]


def test_words_that_do_not_count_are_named(find, tmp_path):
    out = find("slice the Tomato")
    assert "not in the dictionary: slice\n" in out
    assert [row[1:] for row in table_of(out)] == [row[1:] for row in table_of(find("the tomato"))]
    assert "not in the dictionary" not in find("cut")
    assert "only its first 2 words count" in find("cut the tomato", "TEXT.MAX_WORDS", "2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["xyzzy"], "no word of the query 'xyzzy' is in the dictionary"),
        (["?!"], "no word of the query '?!' is in the dictionary"),
        (["cut", "TEXT.DICT", ""], "TEXT.DICT is empty"),
        (["cut", "MODEL.MODEL_NAME", "MViT"], "give a model that embeds text"),
        (["cut", "--stride", "0"], "--stride: expected more than 0"),
        (["cut", "--checkpoint", "none.pyth"], "checkpoint none.pyth does not exist"),
    ],
)
def test_mistakes_are_one_line(find, words, said):
    with pytest.raises(SystemExit) as ended:
        find(*words)
    lines = find.error().splitlines()
    assert ended.value.code == 2
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert said in lines[-1]


def test_folders_without_videos(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        folder.find(tmp_path / "none")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no videos found"):
        folder.find(tmp_path)


def test_the_page_is_whole_and_inert(find, videos, tmp_path):
    os.rename(videos / "a.mp4", videos / f"{HOSTILE.replace('/', '')}.mp4")
    odd = os.fsdecode(b"b\xff.avi")
    os.rename(videos / "b.AVI", videos / odd)
    find("cut the tomato <b>now</b>", "--out", tmp_path / "found.html")
    text = (tmp_path / "found.html").read_text()
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert {name for name, _ in page.elements} & {"script", "b"} == {"b"}
    shown = " ".join(page.text.split())
    assert "cut the tomato <b>now</b>" in shown
    assert HOSTILE.replace("/", "") in shown
    assert all(image["src"].startswith("data:image/webp;base64,") for image in page.all("img"))
    assert len(page.all("img")) == 3
    assert all(link["href"].startswith("file:///") for link in page.all("a"))
    assert not list(tmp_path.glob("*.tmp"))


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "stride", "wanted"),
    [
        (9.6, 3.2, [0, 3.2, 6.4]),
        (9.5, 3.2, [0, 3.2, 6.3]),
        (10.0, 3.2, [0, 3.2, 6.4, 6.8]),
        (2.0, 3.2, [0]),
        (3.2, 3.2, [0]),
        (6.4, 1.6, [0, 1.6, 3.2]),
        (20.0, 10.0, [0, 10, 16.8]),
    ],
)
def test_windows_cover_the_video_and_none_runs_past_its_end(length, stride, wanted):
    times = np.arange(0, length - 1e-9, 0.1)
    np.testing.assert_allclose(starts(times, length, 3.2, stride), wanted)


def test_no_windows_where_there_are_no_frames():
    """A damaged clock gives times that no video reaches; windows there would fill all of memory."""
    times = np.array([0, 0.1, 1e12, 1e12 + 0.1])
    assert len(starts(times, 1e12 + 0.2, 3.2, 3.2)) <= 3


def test_equal_scores_are_listed_by_name_and_time():
    same = cache.Video(9.0, np.array([0.0, 3.2, 6.4]), np.ones((3, 2), np.float32))
    hits = ranked(np.ones(2), {File(p, 1, 1): same for p in "ba"}, seconds=3.2, top=3, per_video=2)
    assert [(hit.path, hit.start) for hit in hits] == [("a", 0.0), ("a", 3.2), ("b", 0.0)]
    with pytest.raises(UserError, match="is the checkpoint whole"):
        ranked(np.full(2, np.nan), {File("a", 1, 1): same}, seconds=3.2, top=3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (59.96, "1:00.0"), (3723.4, "1:02:03.4"), (600.05, "10:00.0")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
