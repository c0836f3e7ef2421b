"""Files that appear whole or not at all."""

import pytest

from videorl import atomic


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "é.json"
    atomic.write(file, "ö")
    with atomic.writing(file) as first, atomic.writing(file) as second:
        first.write(b"first")
        second.write(b"second")
        assert file.read_text("utf-8") == "ö"
    assert file.read_bytes() == b"first"  # whose writer was done last
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_nothing_has_changed(tmp_path, error):
    file = tmp_path / "a"
    atomic.write(file, b"old")

    def write():
        with atomic.writing(file) as out:
            out.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_on_a_full_disk_nothing_has_changed(tmp_path, full_disk):
    file = tmp_path / "a"
    atomic.write(file, b"old")
    full_disk()
    with pytest.raises(OSError, match="No space left"):
        atomic.write(file, b"new")
    atomic.write(file, b"newer", lasting=False)
    assert file.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [file]


def test_drafts_are_what_a_killed_writer_left_and_nothing_else(tmp_path):
    (tmp_path / "deep/a.tmp").mkdir(parents=True)
    for name in ("notes.tmp", "deep/a.json.tmp", "deep/a.json.0000000g.tmp"):
        (tmp_path / name).write_bytes(b"of the user")
    with atomic.writing(tmp_path / "deep/a.json") as out:
        assert [str(file) for file in atomic.drafts(tmp_path)] == [out.name]
    assert not list(atomic.drafts(tmp_path))
