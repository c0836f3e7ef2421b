"""Several data sets as one: labels and shares as the published collate makes them, and samples that stay themselves."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from videorl.data.joint import Joint
from videorl.loading.worker import collate
from videorl.spec import Clip, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402

SIZES = {"kinetics": 7, "mit": 5, "ssv2": 4}
SPEC = Spec(Clip(2, 1, 4, 4), SIZES)


class Drawn:
    """A data set whose "video" is a random number, from (seed, epoch, index) alone."""

    def __init__(self, spec: Spec, labels, copies: int = 1):
        self.spec, self.labels, self.copies, self.epoch = spec, labels, copies, 0
        self.class_names, self.split = {spec.space: ("x",)}, "train"
        self.fingerprint = f"{spec.space}{labels}"

    def __len__(self):
        return len(self.labels)

    def path(self, i):
        return f"{self.spec.space}/{i}"

    def __getitem__(self, i):
        rng = np.random.default_rng([self.spec.seed, self.epoch, i])
        label = torch.as_tensor(self.labels[i])
        return [
            {"video": torch.tensor(rng.random()), "labels": label, "index": torch.tensor(i), "view": torch.tensor(k)}
            for k in range(self.copies)
        ]


def joint(copies: int = 1, replicas=(1, 1, 1)) -> Joint:
    parts = {
        name: Drawn(replace(SPEC, space=name), [(3 * k + d) % classes for k in range(3)], copies)
        for d, (name, classes) in enumerate(SIZES.items())
    }
    return Joint(SPEC, parts, dict(zip(SIZES, replicas)))


@pytest.mark.parametrize(("copies", "kind"), [(1, "plain"), (2, "repeated")])
def test_batch_equals_the_published_collate(copies, kind):
    """The published batch takes sample k of data sets 0, 1, 2, 0, 1, 2 …; sample i has label i modulo classes."""
    expected = load_case(GOLDEN / "multitrain/collate.pt")["expected"][kind]
    order = [d * 3 + k for k in range(3) for d in range(3)]
    data = joint(copies)
    batch = collate([item for i in order for item in data[i]])
    assert torch.equal(batch["labels"], torch.cat(list(expected["labels"].values()), 1))
    assert torch.equal(batch["spaces"], torch.stack([m.float() for m in expected["masks"].values()], 1))
    assert batch["index"].tolist() == [i for i in order for _ in range(copies)]


def test_replicas_and_data_sets_draw_different_numbers_and_each_its_own_again():
    data = joint(replicas=(2, 1, 1))
    assert len(data) == 12
    assert data.sizes == {"kinetics": 6, "mit": 3, "ssv2": 3}
    drawn = [float(data[i][0]["video"]) for i in range(12)]
    assert len(set(drawn)) == 12
    assert [float(data[i][0]["video"]) for i in range(12)] == drawn
    data.epoch = 1
    assert not set(drawn) & {float(data[i][0]["video"]) for i in range(12)}
    assert [data.path(i) for i in (0, 3, 5, 6, 11)] == ["kinetics/0", "kinetics/0", "kinetics/2", "mit/0", "ssv2/2"]


def test_what_the_data_is_made_of_shows_in_its_fingerprint():
    assert joint().fingerprint == joint().fingerprint
    assert joint(replicas=(2, 1, 1)).fingerprint != joint().fingerprint
    assert joint().class_names == dict.fromkeys(SIZES, ("x",))


def test_several_labels_take_their_own_columns():
    parts = {"a": Drawn(replace(SPEC, space="a"), [2]), "b_c": Drawn(replace(SPEC, space="b_c"), [[1.0, 1.0]])}
    data = Joint(Spec(SPEC.clip, {"a": 3, "b_c": 2}), parts, {"a": 1, "b_c": 1})
    assert data[0][0]["labels"].tolist() == [0, 0, 1, 0, 0]
    assert data[1][0]["labels"].tolist() == [0, 0, 0, 1, 1]
    assert data[1][0]["spaces"].tolist() == [0, 1]
