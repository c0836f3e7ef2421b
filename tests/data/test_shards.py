"""MMPT's sharded arrays: those of its own code, and ours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from videorl.data.shards import Sharded, meta_bytes, read_meta, starts_of
from videorl.registry import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "norton"


def test_published_files_are_read():
    case = torch.load(GOLDEN / "sharded_tensor.pt", weights_only=True)
    shard, expected = Sharded(GOLDEN / case["inputs"]["prefix"]), case["expected"]
    assert len(shard) == len(expected["items"])
    for item, wanted in zip([*shard], expected["items"], strict=True):
        assert item.dtype == np.float16
        assert np.array_equal(item, wanted.numpy())
    assert starts_of(expected["lengths"]).tolist() == expected["starts"].tolist()
    assert isinstance(shard.data, np.memmap)


def test_names_of_items_survive(tmp_path):
    (tmp_path / "train_meta.pkl").write_bytes(meta_bytes({0: ["a", "b"], 1: []}))
    assert read_meta(tmp_path / "train_meta.pkl") == {0: ["a", "b"], 1: []}


@pytest.mark.parametrize(
    ("data", "starts", "said"),
    [
        (None, [0, 2], "both files of a shard"),
        (np.zeros((2, 3)), None, "both files of a shard"),
        (np.zeros((2, 3)), [0, 3], "2 rows of data, where its starts end at 3"),
        (np.zeros((2, 3)), [0, 2, 1, 2], "2 rows of data"),
        (np.zeros((2, 3)), [0.0, 2.0], "expected whole numbers"),
        (np.zeros((2, 3)), [], "expected whole numbers"),
        (b"cut", [0, 2], "is damaged"),
        (np.zeros((2, 3)), b"\x93NUMPY\x01\x00", "is damaged"),
    ],
)
def test_damage_is_one_line(tmp_path, data, starts, said):
    for name, content in (("data", data), ("starts", starts)):
        file = tmp_path / f"x_{name}.npy"
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            np.save(file, np.array(content))
    with pytest.raises(UserError, match=said) as error:
        Sharded(tmp_path / "x")
    assert "\n" not in str(error.value)
