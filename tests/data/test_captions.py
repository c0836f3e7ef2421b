"""The caption index says what the caption files say, survives being killed, and notices damage."""

import errno
import hashlib
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.narrated import FOLDER, howto100m
from videorl.data import captions
from videorl.data.captions import CaptionFiles, CaptionIndex, build_index, name_of, verify
from videorl.data.columns import head_of
from videorl.registry import UserError
from videorl.video.errors import VideoError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import index_captions

NAMES = [f"{k % 7}/video{k}" for k in random.Random(0).sample(range(60), 60)]
BAD = {3: None, 10: "start,end,text\n", 20: "start,end\n1,2\n", 30: "start,end,text\n1,x,y\n", 59: ""}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Caption files of 60 videos, with texts of all kinds and five that cannot be read."""
    folder = tmp_path_factory.mktemp("captions")
    rng = random.Random(0)
    words = ["cut", 'say "no"', "a, b", "café", "", "NULL", "two\nlines", "日本"]
    for k, name in enumerate(NAMES):
        text = "start,end,text\n"
        for start in range(rng.randint(1, 9)):
            quoted = rng.choice(words).replace('"', '""')
            text += f'{start + rng.random()},{start + 2 * rng.random()},"{quoted}"\n'
        (folder / name).parent.mkdir(exist_ok=True)
        if BAD.get(k, text) is not None:
            (folder / f"{name}.csv").write_text(BAD.get(k, text), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(captions, "PART", 16)


def quiet(parts, total):
    return parts


@pytest.fixture
def index(root, tmp_path) -> Path:
    build_index(NAMES, str(root), tmp_path / "captions.index", quiet)
    return tmp_path / "captions.index"


def said(source, name: str):
    """Captions, or the stage and reason why there are none."""
    try:
        found = source.of(name)
    except VideoError as error:
        return error.stage, error.reason
    return found.starts.tolist(), found.ends.tolist(), found.texts


def test_the_index_says_what_the_files_say(root, index):
    files, indexed = CaptionFiles(str(root)), CaptionIndex(index)
    found = [said(files, name) for name in NAMES]
    assert found == [said(indexed, name) for name in NAMES]
    assert sum(len(f) == 2 for f in found) == len(BAD) == indexed.unread
    assert {type(text) for f in found if len(f) == 3 for text in f[2]} == {str}


@pytest.mark.parametrize("name", ["0/video", "no", "", "9/a name that is longer than all others"])
def test_a_video_that_is_not_in_the_index(index, name):
    assert said(CaptionIndex(index), name)[0] == "index"
    assert "not in captions.index" in said(CaptionIndex(index), name)[1]


def test_no_file_is_left_beside_the_index(index):
    assert sorted(file.name for file in index.parent.iterdir()) == ["captions.index", "captions.index.json"]


def test_workers_get_the_name_of_the_index_and_not_its_bytes(root, index):
    indexed = CaptionIndex(index)
    sent = pickle.dumps(indexed)
    assert len(sent) < 300
    assert said(pickle.loads(sent), NAMES[0]) == said(indexed, NAMES[0])
    for array in (indexed.names, indexed.starts, indexed.text, indexed.order):
        assert array.base is not None, "a view of the file, not a copy"


def test_the_checksum_is_that_of_the_file(root, index):
    head = verify(index, NAMES, str(root))
    assert head["sha256"] == hashlib.sha256(index.read_bytes()).hexdigest()
    assert head["videos"] == 60


class Killed(Exception):
    """Stands for the end of the process."""


def killed(parts, total):
    raise Killed


def test_a_killed_run_goes_on_where_it_was(root, tmp_path, monkeypatch):
    def killed_at_two(parts, total):
        for k, part in parts:
            if k == 2:
                raise Killed
            yield k, part

    out = tmp_path / "captions.index"
    with pytest.raises(Killed):
        build_index(NAMES, str(root), out, killed_at_two)
    with pytest.raises(UserError, match="videorl index-captions"):
        CaptionIndex(out)
    (tmp_path / "captions.index.parts/0000000032.tmp").write_bytes(b"half")
    read = []
    of = CaptionFiles.read
    monkeypatch.setattr(CaptionFiles, "read", lambda self, name: read.append(name) or of(self, name))
    build_index(NAMES, str(root), out, quiet)
    assert sorted(read) == sorted(NAMES[32:])
    monkeypatch.undo()
    build_index(NAMES, str(root), tmp_path / "other", quiet)
    assert out.read_bytes() == (tmp_path / "other").read_bytes()


def test_another_list_is_refused(root, index, tmp_path):
    with pytest.raises(UserError, match="another list"):
        verify(index, NAMES[1:], str(root))
    with pytest.raises(Killed):
        build_index(NAMES, str(root), tmp_path / "new", killed)
    with pytest.raises(UserError, match="another list"):
        build_index(NAMES[::-1], str(root), tmp_path / "new", quiet)


def test_another_folder_of_captions_is_refused(root, index, tmp_path, monkeypatch):
    monkeypatch.chdir(root.parent)
    verify(index, NAMES, root.name)  # the same, from here
    refused = f"was made from CAPTION_ROOT {root}, not {tmp_path}; delete it"
    with pytest.raises(UserError, match=refused):
        verify(index, NAMES, str(tmp_path))
    with pytest.raises(Killed):
        build_index(NAMES, str(root), tmp_path / "new", killed)
    with pytest.raises(UserError, match=refused):
        build_index(NAMES, str(tmp_path), tmp_path / "new", quiet)


def test_a_folder_without_captions_is_refused_and_leaves_nothing(root, tmp_path):
    """Else all videos would go into quarantine, and the right folder would be another one than before."""
    (tmp_path / "wrong").mkdir()
    with pytest.raises(UserError, match=f"wrong: none of 60 videos .* first: captions {NAMES[0]}.csv: No"):
        build_index(NAMES, str(tmp_path / "wrong"), tmp_path / "index", quiet)
    assert [file.name for file in tmp_path.iterdir()] == ["wrong"]
    build_index(NAMES, str(root), tmp_path / "index", quiet)


def test_a_disk_that_fails_ends_the_run_which_then_goes_on(root, tmp_path, monkeypatch, capsys):
    """Only what is wrong for good stands in the index."""
    (tmp_path / "list.csv").write_text("video_path\n" + "".join(f"{name}.mp4\n" for name in NAMES))
    words = [str(tmp_path / "list.csv"), str(root), str(tmp_path / "out")]
    read = CaptionFiles.read

    def failing(self, name):
        if name == NAMES[40]:
            raise OSError(errno.EIO, "Input/output error", f"{name}.csv")
        return read(self, name)

    monkeypatch.setattr(CaptionFiles, "read", failing)
    with pytest.raises(SystemExit) as end:
        index_captions.main(words)
    assert end.value.code == 2
    assert f"Input/output error: '{NAMES[40]}.csv'; what was read is kept" in capsys.readouterr().err
    assert len(list((tmp_path / "out.parts").glob("*.npz"))) == 2
    monkeypatch.undo()
    monkeypatch.setattr(captions, "PART", 16)
    index_captions.main(words)
    assert capsys.readouterr().out.endswith(f"captions of 60 videos, {len(BAD)} of them unreadable\n")


def test_parts_that_a_killed_run_left_beside_its_index_are_removed(root, index, tmp_path, capsys):
    parts = tmp_path / "captions.index.parts"
    parts.mkdir()
    (parts / "list.json").touch()
    (tmp_path / "list.csv").write_text("video_path\n" + "".join(f"{name}.mp4\n" for name in NAMES))
    index_captions.main([str(tmp_path / "list.csv"), str(root), str(index)])
    assert "checked" in capsys.readouterr().out
    assert not parts.exists()


def test_the_command_names_its_own_argument(tmp_path, capsys):
    (tmp_path / "list.csv").write_text("video_path\na.mp4\n")
    with pytest.raises(SystemExit):
        index_captions.main([str(tmp_path / "list.csv"), str(tmp_path / "none"), str(tmp_path / "out")])
    assert capsys.readouterr().err.startswith("error: CAPTION_ROOT ")
    assert not (tmp_path / "out.parts").exists()


def test_damage_is_noticed(root, index):
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    with pytest.raises(UserError, match="has changed since it was made"):
        verify(index, NAMES, str(root))
    index.write_bytes(content[:-1])
    with pytest.raises(UserError, match="does not fit its json"):
        CaptionIndex(index)
    head_of(index).write_text("{")
    with pytest.raises(UserError, match="does not fit its json"):
        CaptionIndex(index)


def test_a_damaged_part_is_named(root, tmp_path):
    def spoil(parts, total):
        for k, part in parts:
            yield k, part
            part.write_bytes(part.read_bytes()[:-40])

    with pytest.raises(UserError, match=r"0000000000.npz is damaged; delete it"):
        build_index(NAMES, str(root), tmp_path / "captions.index", spoil)


def test_training_samples_are_the_same_with_and_without_the_index(tmp_path):
    build_index(["vidA", "short"], str(FOLDER / "captions"), tmp_path / "index", quiet)
    plain, indexed = howto100m(), howto100m(caption_root="", caption_index=str(tmp_path / "index"))
    for epoch in range(3):
        plain.epoch = indexed.epoch = epoch
        for i in (0, 1):
            (a,), (b,) = plain[i], indexed[i]
            assert all(np.array_equal(a[key], b[key]) for key in a)
    assert plain.fingerprint != indexed.fingerprint


def test_names_end_at_the_first_dot():
    assert [name_of(path) for path in ("a.mp4", "b/c.d.webm", "e.f/g.mp4")] == ["a", "b/c", "e"]


def test_the_command_writes_checks_and_refuses(root, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("video_path\n" + "".join(f"{name}.mp4\n" for name in NAMES))
    words = [str(tmp_path / "list.csv"), str(root), str(tmp_path / "out")]
    counted = f"captions of 60 videos, {len(BAD)} of them unreadable\n"
    for done in ("written", "checked"):
        index_captions.main(words)
        told = capsys.readouterr().out
        assert f"out: {done}, " in told
        assert told.endswith(counted)
    (tmp_path / "list.csv").write_text("video_path\na.mp4\n")
    with pytest.raises(SystemExit) as end:
        index_captions.main(words)
    assert end.value.code == 2
