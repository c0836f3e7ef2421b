"""Whatever makes a model for a command asks DETERMINISM first."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from videorl.cli import align, reconstruct
from videorl.features import loaded
from videorl.predict.classifier import Classifier
from videorl.registry import UserError


@pytest.mark.parametrize("load", [loaded.load, reconstruct.loaded, align._model, Classifier])
def test_commands_that_load_a_model_set_the_level(load):
    with pytest.raises(UserError, match="DETERMINISM 'wrong': expected off, data or full"):
        load(SimpleNamespace(DETERMINISM="wrong"), Path("none.pyth"))
