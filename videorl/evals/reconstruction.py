"""How well a masked autoencoder predicts the patches it does not see, on clips it was not trained on."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videorl.metrics.pixels import painted, patches, places, restored, standardised, unseen
from videorl.registry import EVALS, UserError
from videorl.spec import Spec

SHOWN, FRAMES, SIDE = 8, 8, 112  # clips that are kept as pictures, their frames, and their side in pixels
GREY = 0.5  # of what is hidden


@EVALS.register("reconstruction", normalise="MASK.NORMALISE")
class Reconstruction:
    """Squared error of the predicted pixels, against predicting of each patch its mean colour.

    Metrics: `explained`, 1 - mse / baseline_mse (1 is best, 0 no better than mean colours); `mse` and `baseline_mse`,
    means over all values of the hidden patches that are predicted. Values are pixels standardised for each patch and
    colour, as in VideoMAE, where the baseline is 0 and its error about 1; or pixels in 0..1.

    Keys:
        normalise: the model predicts standardised pixels
    """

    def __init__(self, spec: Spec, *, normalise: bool = True):
        if not spec.masking.ratio:
            raise UserError(
                "EVALS: reconstruction reads masked clips, found MASK.RATIO 0; set it to that of the pre-training, or"
                " name another evaluation, such as views"
            )
        self.views = spec.views.clips * spec.views.crops
        self.masking, self.patch, self.normalise = spec.masking, spec.patch, normalise
        self.pictures: dict[int, Tensor] = {}  # sample index -> uint8 [4, F, 3, S, S]

    @property
    def protocol(self) -> str:
        masking = self.masking
        half = f", of which the decoder predicts half ({masking.decoder})" if masking.decoder != "all" else ""
        what = "pixels standardised by patch and colour" if self.normalise else "pixels in 0..1"
        views = f"{self.views} views" if self.views > 1 else "1 view"
        return f"{masking.ratio:.0%} of the patches hidden ({masking.kind}){half}; {what}; {views} per video"

    def step(self, model, batch) -> dict[str, Tensor]:
        """Rows of one batch: sample index, view, sums of squared error and of the baseline's, values they are of."""
        pixels, visible, masked = (batch[name] for name in ("pixels", "visible", "masked"))
        predicted = model(pixels=pixels, visible=visible, masked=masked)["predicted"].float()
        self._keep(batch, predicted)
        found = errors(pixels, visible, masked, predicted, self.patch, self.normalise)
        return {"index": batch["index"], "view": batch["view"], **found}

    def _keep(self, batch, predicted: Tensor) -> None:
        rows = torch.nonzero((batch["index"] < SHOWN) & (batch["view"] == 0))[:, 0]
        if len(rows):
            given = [batch[name][rows] for name in ("pixels", "visible", "masked")]
            made = pictures(*given, predicted[rows], self.patch, self.normalise)
            for index, of_clip in zip(batch["index"][rows].tolist(), made.cpu()):
                self.pictures[index] = reduced(of_clip)

    def finish(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and one row per video: index, mse, baseline_mse. Rows come sorted by (index, view).

        Beside these rows `pictures` `[K, 4, F, S, S, 3]` of the first videos (those among the first 8 that rank 0 read)
        and `pictured` `[K]`, the rows they belong to.
        """
        index = rows["index"][:: self.views]
        sums = {k: rows[k].reshape(-1, self.views).sum(1) for k in ("error", "baseline", "values")}
        total = {k: float(v.sum()) for k, v in sums.items()}
        mse, baseline = total["error"] / total["values"], total["baseline"] / total["values"]
        explained = 1 - mse / baseline if baseline else float("nan")
        per_video = {"mse": sums["error"] / sums["values"], "baseline_mse": sums["baseline"] / sums["values"]}
        return {"explained": explained, "mse": mse, "baseline_mse": baseline}, {
            "index": index,
            **per_video,
            **self._pictures_of(index),
        }

    def _pictures_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
        kept, self.pictures = self.pictures, {}
        if not kept:
            return {}
        shown = torch.stack([kept[i] for i in sorted(kept)]).permute(0, 1, 2, 4, 5, 3)  # [K, 4, F, S, S, 3]
        return {"pictures": shown.numpy(), "pictured": np.searchsorted(index, sorted(kept))}


def errors(
    pixels: Tensor, visible: Tensor, masked: Tensor, predicted: Tensor, patch: tuple[int, int, int], normalise: bool
) -> dict[str, Tensor]:
    """Of each clip `[B]` float64: `error` and `baseline`, sums of squares over its `values`. See `Reconstruction`.

    Tokens that are predicted though the model sees them (V2's decoder masks) do not count.
    """
    target = patches(pixels, masked, patch)  # [B, M, P]
    target = standardised(target) if normalise else target
    counted = unseen(masked, visible)  # [B, M]
    from_mean = _by_colour(target) - _by_colour(target).mean(2, keepdim=True)
    summed = {
        k: d.double().square().sum(2) for k, d in (("error", predicted - target), ("baseline", from_mean.flatten(2)))
    }
    found = {k: (v * counted).sum(1) for k, v in summed.items()}
    return {**found, "values": counted.sum(1).double() * target.shape[2]}


def pictures(
    pixels: Tensor, visible: Tensor, masked: Tensor, predicted: Tensor, patch: tuple[int, int, int], normalise: bool
) -> Tensor:
    """uint8 `[B, 4, T, 3, H, W]`: the clip, what the model sees, what it makes of it, and that with true statistics.

    Standardised predictions lack the mean and contrast of each patch and colour. The third picture takes them from the
    visible patches, which anybody has who has the prediction: weighted by 1 / distance^4 on the grid of tokens. The
    fourth takes them from the true patch, as published visualisers do: that gives away what was to be predicted.
    Hidden patches that are not predicted are grey.
    """
    seen = patches(pixels, visible, patch)
    hidden = _hidden(visible, pixels, patch)
    masked_clip = painted(pixels, hidden, seen.new_full((*hidden.shape, seen.shape[2]), GREY), patch)
    guessed = true = predicted
    if normalise:
        grid = (pixels.shape[3] // patch[1], pixels.shape[4] // patch[2])
        guessed = _with_statistics_near(predicted, masked, seen, visible, grid)
        true = restored(predicted, patches(pixels, masked, patch))
    made = [painted(painted(masked_clip, masked, v, patch), visible, seen, patch) for v in (guessed, true)]
    return torch.stack([pixels, masked_clip, *made], dim=1)


def _hidden(visible: Tensor, pixels: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, N - V] tokens that are not visible, ascending."""
    frames, _, height, width = pixels.shape[1:]
    tokens = (frames // patch[0]) * (height // patch[1]) * (width // patch[2])
    hidden = torch.ones(len(visible), tokens, dtype=torch.bool, device=visible.device).scatter(1, visible, False)
    return hidden.nonzero()[:, 1].view(len(visible), -1)


def _with_statistics_near(
    predicted: Tensor, masked: Tensor, seen: Tensor, visible: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Standardised `predicted` `[B, M, P]` with mean and contrast of the `seen` patches `[B, V, P]` nearby."""
    positions = [torch.stack(places(index, *grid), dim=2).float() for index in (masked, visible)]  # [B, M or V, 3]
    weights = (torch.cdist(*positions).clamp(min=1e-3)) ** -4  # [B, M, V]
    weights = weights / weights.sum(2, keepdim=True)
    variance, mean = torch.var_mean(_by_colour(seen), dim=2)  # [B, V, 3]
    mean, spread = ((weights @ of_seen)[:, :, None] for of_seen in (mean, variance.sqrt()))
    return (_by_colour(predicted) * spread + mean).flatten(2)


def _by_colour(patches: Tensor) -> Tensor:
    """[B, K, P] -> [B, K, P / 3, 3]."""
    return patches.unflatten(2, (-1, 3))


def reduced(clips: Tensor) -> Tensor:
    """uint8 `[4, T, 3, H, W]` -> `[4, F, 3, S, S]`: up to FRAMES frames, spread evenly, of SIDE pixels at most."""
    frames = torch.linspace(0, clips.shape[1] - 1, min(FRAMES, clips.shape[1])).round().long()
    chosen = clips[:, frames]
    if clips.shape[-1] <= SIDE:
        return chosen
    small = F.interpolate(chosen.flatten(0, 1).float(), (SIDE, SIDE), mode="area")
    return small.round().byte().unflatten(0, chosen.shape[:2])
