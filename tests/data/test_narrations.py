"""Lists of narrations: pickles of tuples, and the files of arrays made from them."""

import os
import pickle

import pytest

from videorl.cli import convert_metadata
from videorl.data import narrations
from videorl.data.narrations import Narration
from videorl.registry import UserError

ROWS = [
    ("b-video", 0.5, 1.5, "#C C cuts the onion"),
    ("a-vidéo", 3.25, 3.25, ["#C C gießt Wasser", "", "#C C pours \0 water\n"]),
    ("b-video", 7.0, 6.0, None),
    ("c", 0, 10, []),
    ["c", 1, 2.5, ["#C C cuts", "#C C cuts2"], [1.2, 3.4]],
]
EXPECTED = [
    Narration("b-video", 0.5, 1.5, ("#C C cuts the onion",), False),
    Narration("a-vidéo", 3.25, 3.25, ("#C C gießt Wasser", "#C C pours \0 water\n"), False),
    Narration("b-video", 7.0, 6.0, (), False),
    Narration("c", 0.0, 10.0, (), False),
    Narration("c", 1.0, 2.5, ("#C C cuts", "#C C cuts2"), True),
]


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "ego4d_train.pkl"
    path.write_bytes(pickle.dumps(ROWS))
    return path


def contents(found) -> list[Narration]:
    return [found[i] for i in range(len(found))]


def test_rows_are_the_same_from_the_list_and_from_its_arrays(listed, capsys):
    slow = narrations.read(listed)
    convert_metadata.main([str(listed)])
    assert "5 rows of 3 videos" in capsys.readouterr().out
    fast = narrations.read(listed)
    assert contents(slow) == contents(fast) == EXPECTED
    assert [fast.name(i) for i in range(5)] == [row[0] for row in ROWS]
    assert slow.fingerprint == fast.fingerprint
    assert contents(pickle.loads(pickle.dumps(fast))) == EXPECTED
    assert len(pickle.dumps(fast)) < 500  # workers map the file: they get its name


def test_arrays_of_another_list_are_not_read(listed):
    narrations.convert(listed)
    listed.write_bytes(pickle.dumps(ROWS[:2]))
    assert contents(narrations.read(listed)) == EXPECTED[:2]
    assert "2 rows" in narrations.convert(listed)
    assert "there already" in narrations.convert(listed)


def test_several_lists_are_one(listed, tmp_path):
    other = tmp_path / "narrator.pkl"
    other.write_bytes(pickle.dumps(ROWS[4:]))
    both = narrations.Together([narrations.read(listed), narrations.read(other)])
    assert contents(both) == EXPECTED + EXPECTED[4:]
    assert both.name(5) == "c"
    swapped = narrations.Together(both.lists[::-1])
    assert len({both.fingerprint, swapped.fingerprint, both.lists[0].fingerprint}) == 3


class Code:
    def __reduce__(self):
        return os.system, ("touch /tmp/ran",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([("v", 0, 1, "a"), ("v", 0, 1)], r"row 1: expected \(video, start, .*found tuple of 3"),
        ([("../v", 0, 1, "a")], "row 0: expected the name of a video, found '../v'"),
        ([("v", 0, float("nan"), "a")], "row 0: expected seconds of start and end, found 0 and nan"),
        ([("v", -1.0, 1, "a")], "row 0: expected seconds"),
        ([("v", 0, 1, ["a", 5])], "row 0: expected a text or a list of texts, found list of 2"),
        ([("v", 0, 1, "\ud800")], "row 0: expected text, found half a character in '.ud800'"),
        ([], "expected a list of rows .* found list of 0"),
        ({"v": 1}, "expected a list of rows .* found dict of 1"),
        ([Code()], "names posix.system, which could run code"),
    ],
    ids=["short", "path", "nan", "negative", "text", "half", "empty", "dict", "code"],
)
def test_what_is_no_list_of_narrations_is_refused(content, said, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=said) as error:
        narrations.read(path)
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(UserError, match="METADATA .*none.pkl': no such file; name a list"):
        narrations.read(tmp_path / "none.pkl")
    with pytest.raises(SystemExit) as stopped:
        convert_metadata.main([str(tmp_path / "none.pkl")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
