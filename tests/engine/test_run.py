"""What a run leaves about itself in its folder, and what happens where that cannot be written."""

import json

import numpy as np
import pytest

from videorl.engine import run
from videorl.registry import UserError


@pytest.fixture
def said(caplog):
    return caplog


def content(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_entries_are_set_and_others_stay(tmp_path):
    run.note(tmp_path, {"a": 1, "b": 2})
    run.note(tmp_path, {"b": 3})
    assert content(tmp_path) == {"a": 1, "b": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("broken", ["", "{", "[1, 2]", "null"])
def test_a_broken_file_is_written_anew(tmp_path, said, broken):
    (tmp_path / "run.json").write_text(broken)
    run.note(tmp_path, {"a": 1})
    assert content(tmp_path) == {"a": 1}
    assert "run.json is broken" in said.text


@pytest.mark.parametrize("kind", ["disk full", "folder"])
def test_notes_that_cannot_be_written_end_nothing_and_results_are_an_error(tmp_path, said, full_disk, kind):
    if kind == "disk full":
        full_disk()
    else:
        for name in ("run", "results"):
            (tmp_path / f"{name}.json").mkdir()
    run.note(tmp_path, {"a": 1})
    assert "run.json cannot be written (" in said.text
    with pytest.raises(UserError, match=r"results.json cannot be written \((No space left on device|Is a directory)\)"):
        run.update_json(tmp_path / "results.json", {"evals": {}})


def test_a_stopped_run_ends_with_its_code_on_a_full_disk_too(tmp_path, said):
    (tmp_path / "PREEMPTED").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as end:
        run.preempted(tmp_path, "SIGTERM after step 3")
    assert end.value.code == 75
    assert "PREEMPTED cannot be written" in said.text


def test_a_full_disk_does_not_keep_the_folder_from_being_held(tmp_path, said):
    (tmp_path / ".lock").symlink_to("/dev/full")
    with run.held(tmp_path):
        pass
    assert ".lock cannot be written (" in said.text


def test_data_sets_are_listed_with_size_and_hash():
    sets = {"kinetics/train": Annotations(3, "ab12"), "kinetics/val": Annotations(2, "cd34")}
    assert run.agreed_data(sets) == {
        "kinetics/train": {"samples": 3, "fingerprint": "ab12"},
        "kinetics/val": {"samples": 2, "fingerprint": "cd34"},
    }


def test_classes_are_listed_with_their_samples():
    data = Annotations(3, "ab12")
    data.class_counts, data.class_names = {"toy": np.array([2, 0, 1])}, {"toy": ("a", "b", "c")}
    facts = run.annotations(data)
    assert facts == {"samples": 3, "fingerprint": "ab12", "classes": {"toy": {"a": 2, "b": 0, "c": 1}}}
    assert run.all_classes([facts, facts]) == {"classes": {"toy": {"a": 4, "b": 0, "c": 2}}}
    data.class_names = {"toy": ()}
    assert run.annotations(data)["classes"] == {"toy": {"0": 2, "1": 0, "2": 1}}
    assert run.all_classes([{"samples": 3}]) == {}


class Annotations:
    def __init__(self, size: int, fingerprint: str):
        self.size, self.fingerprint = size, fingerprint

    def __len__(self) -> int:
        return self.size
