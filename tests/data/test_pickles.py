"""Pickled annotations: plain values are read, anything else is refused and not run."""

import collections
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from videorl.data.pickles import load_array, load_plain
from videorl.registry import UserError

EGO4D = [("3c0dffd0-e38e", 12.5, 14.0, "#C C picks é"), ("a7", 0.0, 1.0, ["two", "texts"])]
PLAIN = [EGO4D, {"a": (1, -2.5, True, None)}, {1, 2}, frozenset({"x"}), b"\xff\0bytes", 2**200, "", [], float("inf")]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read(tmp_path, protocol):
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(PLAIN, protocol))
    found = load_plain(str(file))
    assert found == PLAIN
    assert [type(value) for value in found] == [type(value) for value in PLAIN]


def test_a_value_that_holds_itself_is_read(tmp_path):
    ring = []
    ring.append(ring)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(ring))
    found = load_plain(tmp_path / "x.pkl")
    assert found[0] is found


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads(marker: Path) -> dict[str, bytes]:
    touch = f"open({str(marker)!r}, 'w')"
    calls = {
        "system": Calls(os.system, f"touch {marker}"),
        "open": Calls(open, str(marker), "w"),
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "getattr": Calls(getattr, [], "append"),
        "import": Calls(__import__, "antigravity"),
        "path": marker,
        "array": np.arange(3),
        "counter": collections.Counter("aab"),
        "class": Calls,
    }
    wrapped = {name: pickle.dumps([("uid", 0.0, 1.0, {"text": [call]})], 2) for name, call in calls.items()}
    return {
        **wrapped,
        "codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00bz2_ctR.",
        "codec_other": pickle.dumps(b"\xff", 2).replace(b"latin1", b"utf-16"),
        "dotted": b"\x80\x04\x8c\x08builtins\x8c\x0fset.__class__.mro\x93.",
        "persistent": b"Pfile.bin\n.",
        "extension": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("name", payloads(Path("marker")))
def test_whatever_calls_or_names_something_is_refused_and_not_run(tmp_path, name):
    marker = tmp_path / "marker"
    (tmp_path / "x.pkl").write_bytes(payloads(marker)[name])
    with pytest.raises(UserError, match="x.pkl: .*expected a pickle of lists, tuples") as caught:
        load_plain(tmp_path / "x.pkl")
    assert not marker.exists()
    assert "\n" not in str(caught.value)


def test_the_payloads_work(tmp_path):
    marker = tmp_path / "marker"
    for name in ("system", "open", "eval", "exec"):
        pickle.loads(payloads(marker)[name])
        assert marker.exists()
        marker.unlink()


DAMAGED = {
    "empty": b"",
    "cut": pickle.dumps(PLAIN)[:-20],
    "text": b"no pickle at all",
    "memory": b"\x80\x02r" + struct.pack("<I", 2**31 - 1) + b".",
    "length": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".",
    "deep": b"(" * 1_000_000 + b".",
    "stack": b".",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_greedy_files_are_an_error(tmp_path, name):
    (tmp_path / "x.pkl").write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match="x.pkl"):
        load_plain(tmp_path / "x.pkl", gigabytes=0.5)


def test_a_file_that_takes_too_long_is_an_error(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(list(range(3_000_000))))
    with pytest.raises(UserError, match="not read within 0 s"):
        load_plain(tmp_path / "x.pkl", seconds=0.0)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="expected a pickle file; there is none"):
        load_plain(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "values", [np.arange(6, dtype=">f4").reshape(2, 3), np.arange(6.0).reshape(3, 2).T, np.eye(2, dtype=bool)]
)
def test_arrays_of_numbers_are_read(values, protocol, tmp_path):
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(values, protocol))
    found = load_array(file, "KEY")
    assert (found.dtype, found.tolist()) == (values.dtype, values.tolist())
    with pytest.raises(UserError, match="which could run code"):
        load_plain(file)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([{}], object), "an array of 'O8', which are no numbers"),
        (np.array(["a"]), "an array of '<U1', which are no numbers"),
        ([1.0], "KEY .*: expected a pickle of one array of numbers, found list"),
        (np.ma.masked_array([1]), "which could run code"),
    ],
    ids=["objects", "texts", "list", "other"],
)
def test_other_arrays_are_refused(value, said, tmp_path):
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(value, 4))
    with pytest.raises(UserError, match=said):
        load_array(file, "KEY")
