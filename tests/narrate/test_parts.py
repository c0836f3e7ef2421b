"""Work that ranks and shards share: who writes the files, when, and what is cleared before."""

import pytest

from videorl import dist
from videorl.narrate import parts
from videorl.prepare.record import PARTS, Shard


class Job:
    """Five batches of one row, and a file with all rows."""

    groups = range(5)

    def __init__(self, out):
        self.out = out

    def fill(self, shard):
        return parts.fill(
            self.out, {}, "job.json", "rows", shard, len(self.groups), lambda todo: ([f"row {k}"] for k in todo)
        )

    def write(self, places):
        with parts.finishing(self.out):
            (self.out / "all").write_text(",".join(parts.rows(places)))
        return {"rows": len(places)}


@pytest.fixture
def two_ranks(monkeypatch):
    """This process is the first of two ranks, the other of which makes its part while the first waits for it."""

    def begin(job: Job) -> None:
        monkeypatch.setattr(dist, "world_size", lambda: 2)
        monkeypatch.setattr(dist, "barrier", lambda: job.fill(Shard(1, 2)))

    return begin


def test_the_first_rank_writes_what_a_slower_one_has_made(tmp_path, two_ranks):
    job = Job(tmp_path / "out")
    two_ranks(job)
    assert parts.share(lambda: job, job.out, 0, 1) == {"rows": 5}
    assert (job.out / "all").read_text() == "row 0,row 1,row 2,row 3,row 4"


def test_the_shard_that_ends_last_writes(tmp_path, capsys):
    job = Job(tmp_path)
    assert parts.share(lambda: job, tmp_path, 1, 2) is None
    assert "other shards are not yet" in capsys.readouterr().out
    assert not (tmp_path / "all").exists()
    assert parts.share(lambda: job, tmp_path, 0, 2) == {"rows": 5}


def test_what_a_killed_writer_left_is_cleared_and_nothing_of_the_user_s(tmp_path):
    job = Job(tmp_path)
    job.fill(Shard(0, 1))
    (tmp_path / "folder.tmp").mkdir()
    (tmp_path / "folder.tmp/all.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"of the user")
    job.write(parts.finished(tmp_path / PARTS))
    left = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.tmp"))
    assert left == ["folder.tmp", "notes.tmp"]
