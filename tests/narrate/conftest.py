"""What the tests of narrating share: toy videos with a list, and a narrator of random weights."""

import pytest
import torch

from tests.narrate.world import narrator, toy


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def model(tmp_path_factory, world) -> list[str]:
    return narrator(tmp_path_factory.mktemp("model"), world)
