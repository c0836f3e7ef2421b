"""A model that is run on clips, with all that its outputs depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from videorl.engine.step import Precision, call, to_device
from videorl.registry import UserError, did_you_mean
from videorl.spec import Clip

MAPS = ("cls", "map")  # what `feature_map` of a model gives


class Encoder:
    """A model in evaluation, the shape of its clips, and the precision it is run in."""

    def __init__(self, model: nn.Module, name: str, clip: Clip, precision: Precision):
        self.model, self.name, self.clip, self.precision = model.eval(), name, clip, precision

    @property
    def seconds(self) -> float:
        """Length of a window."""
        return self.clip.frames * self.clip.rate / self.clip.fps

    def outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that the model's `forward` gives; of `batch`, `video` is uint8 [B, T, 3, S, S]."""
        with torch.inference_mode(), self.precision.autocast():
            return call(self.model, to_device(batch, self.precision.device, self.clip))

    def features(self, video: Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
        """float32 [B, …] by name: outputs of `forward`, or `cls` and `map` of the model's `feature_map`.

        Raises `UserError` that lists what there is.
        """
        found = {}
        if set(names) - {*MAPS}:
            found |= self.outputs({"video": video})
        if {*MAPS} & {*names} and hasattr(self.model, "feature_map"):
            with torch.inference_mode(), self.precision.autocast():
                found |= self.model.feature_map(to_device({"video": video}, self.precision.device, self.clip)["video"])
        if missing := [name for name in names if name not in found]:
            known = sorted({*self.outputs({"video": video}), *(MAPS if hasattr(self.model, "feature_map") else ())})
            hint = did_you_mean(missing[0], known)
            raise UserError(f"{self.name} gives no {missing[0]}{hint}: expected some of {', '.join(known)}")
        return {name: found[name].float().cpu().numpy() for name in names}

    def blank(self) -> Tensor:
        """A black clip, uint8 [1, T, 3, S, S], to see what comes of one."""
        clip = self.clip
        return torch.zeros(1, clip.frames, clip.channels, clip.test_size, clip.test_size, dtype=torch.uint8)

    def fingerprint(self, *facts) -> str:
        """SHA-256 of the weights, of how clips are made, and of `facts` (JSON)."""
        return fingerprint(self.model, self.name, repr(self.clip), str(self.precision.dtype), facts)


def fingerprint(model: nn.Module, *facts) -> str:
    """SHA-256 of the weights and of `facts` (JSON)."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
