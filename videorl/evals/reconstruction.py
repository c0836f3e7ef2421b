"""How well a masked autoencoder predicts the patches it does not see, on clips it was not trained on."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videorl.metrics import HIGHER, LOWER
from videorl.metrics.pixels import Targets, painted, patches, places, unseen
from videorl.registry import EVALS, UserError
from videorl.spec import Spec

SHOWN, FRAMES, SIDE = 8, 8, 112  # clips that are kept as pictures, their frames, and their side in pixels
GREY = 0.5  # of what is hidden


@EVALS.register("reconstruction")
class Reconstruction:
    """Squared error of the predicted pixels, against predicting of each patch its mean colour.

    Metrics: `explained`, 1 - mse / baseline_mse (1 is best, 0 no better than mean colours); `mse` and `baseline_mse`,
    means over all values of the hidden patches that are predicted. Values are what MASK.TARGET and MASK.NORMALISE say:
    pixels standardised for each patch and colour, as in VideoMAE, where the error of the baseline is about 1.
    """

    metrics = {"explained": HIGHER, "mse": LOWER, "baseline_mse": LOWER}

    def __init__(self, spec: Spec):
        if not spec.masking.ratio:
            raise UserError(
                "EVALS: reconstruction reads masked clips, found MASK.RATIO 0; set it to that of the pre-training, or"
                " name another evaluation, such as views"
            )
        self.views = spec.views.clips * spec.views.crops
        self.masking, self.targets = spec.masking, Targets.of(spec)
        self.pictures: dict[int, Tensor] = {}  # sample index -> uint8 [4, F, 3, S, S]

    @property
    def protocol(self) -> str:
        masking = self.masking
        half = f", of which the decoder predicts half ({masking.decoder})" if masking.decoder != "all" else ""
        what = described(self.targets)
        views = f"{self.views} views" if self.views > 1 else "1 view"
        return f"{masking.ratio:.0%} of the patches hidden ({masking.kind}){half}; {what}; {views} per video"

    def step(self, model, batch) -> dict[str, Tensor]:
        """Rows of one batch: sample index, view, sums of squared error and of the baseline's, values they are of."""
        pixels, visible, masked = (batch[name] for name in ("pixels", "visible", "masked"))
        predicted = model(pixels=pixels, visible=visible, masked=masked)["predicted"].float()
        self._keep(batch, predicted)
        found = errors(pixels, visible, masked, predicted, self.targets)
        return {"index": batch["index"], "view": batch["view"], **found}

    def _keep(self, batch, predicted: Tensor) -> None:
        rows = torch.nonzero((batch["index"] < SHOWN) & (batch["view"] == 0))[:, 0]
        if len(rows):
            given = [batch[name][rows] for name in ("pixels", "visible", "masked")]
            made = pictures(*given, predicted[rows], self.targets)
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


def described(targets: Targets) -> str:
    """What is predicted, in words."""
    ordinal = {2: "2nd", 3: "3rd"}.get(targets.step, f"{targets.step}th")
    frames = f"every {ordinal} frame alone, " if targets.step > 1 else ""
    if not targets.standard:
        return f"{frames}pixels {'normalised' if targets.first_frame else 'in 0..1'}"
    return f"{frames}pixels standardised by patch{'' if targets.first_frame else ' and colour'}"


def errors(pixels: Tensor, visible: Tensor, masked: Tensor, predicted: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Of each clip `[B]` float64: `error` and `baseline`, sums of squares over its `values`. See `Reconstruction`.

    Tokens that are predicted though the model sees them (V2's decoder masks) do not count.
    """
    target = targets(pixels, masked)  # [B, M, P]
    counted = unseen(masked, visible)  # [B, M]
    by_colour = target.unflatten(2, (-1, pixels.shape[2]))
    from_mean = (by_colour - by_colour.mean(2, keepdim=True)).flatten(2)
    summed = {k: d.double().square().sum(2) for k, d in (("error", predicted - target), ("baseline", from_mean))}
    found = {k: (v * counted).sum(1) for k, v in summed.items()}
    return {**found, "values": counted.sum(1).double() * target.shape[2]}


def pictures(pixels: Tensor, visible: Tensor, masked: Tensor, predicted: Tensor, targets: Targets) -> Tensor:
    """uint8 `[B, 4, T, 3, H, W]`: the clip, what the model sees, what it makes of it, and that with true statistics.

    Standardised predictions lack the mean and contrast of each patch. The third picture takes them from the visible
    patches, which anybody has who has the prediction: weighted by 1 / distance^4 on the grid of tokens. The fourth
    takes them from the true patch, as published visualisers do: that gives away what was to be predicted. Hidden
    patches that are not predicted are grey. Where first frames alone are predicted, only these are shown.
    """
    pixels, patch = pixels[:, :: targets.step], targets.shape
    seen = patches(pixels, visible, patch)
    hidden = _hidden(visible, pixels, patch)
    masked_clip = painted(pixels, hidden, seen.new_full((*hidden.shape, seen.shape[2]), GREY), patch)
    guessed = true = predicted
    if targets.standard:
        grid = (pixels.shape[3] // patch[1], pixels.shape[4] // patch[2])
        near = _statistics_near(masked, targets.statistics(targets.scaled(seen)), visible, grid)
        own = targets.statistics(targets.scaled(patches(pixels, masked, patch)))
        guessed, true = (targets.restored(predicted, *statistics) for statistics in (near, own))
    made = [targets.unscaled(values) for values in (guessed, true)]
    made = [painted(painted(masked_clip, masked, values, patch), visible, seen, patch) for values in made]
    return torch.stack([pixels, masked_clip, *made], dim=1)


def _hidden(visible: Tensor, pixels: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, N - V] tokens that are not visible, ascending."""
    frames, _, height, width = pixels.shape[1:]
    tokens = (frames // patch[0]) * (height // patch[1]) * (width // patch[2])
    hidden = torch.ones(len(visible), tokens, dtype=torch.bool, device=visible.device).scatter(1, visible, False)
    return hidden.nonzero()[:, 1].view(len(visible), -1)


def _statistics_near(
    masked: Tensor, statistics: tuple[Tensor, Tensor], visible: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Mean and spread of tokens `[B, M]` from those `[B, V, 1, G]` of the visible ones nearby: `[B, M, 1, G]`."""
    positions = [torch.stack(places(index, *grid), dim=2).float() for index in (masked, visible)]  # [B, M or V, 3]
    weights = (torch.cdist(*positions).clamp(min=1e-3)) ** -4  # [B, M, V]
    weights = weights / weights.sum(2, keepdim=True)
    mean, spread = (torch.einsum("bmv,bvog->bmog", weights, values) for values in statistics)
    return mean, spread


def reduced(clips: Tensor) -> Tensor:
    """uint8 `[4, T, 3, H, W]` -> `[4, F, 3, S, S]`: up to FRAMES frames, spread evenly, of SIDE pixels at most."""
    frames = torch.linspace(0, clips.shape[1] - 1, min(FRAMES, clips.shape[1])).round().long()
    chosen = clips[:, frames]
    if clips.shape[-1] <= SIDE:
        return chosen
    small = F.interpolate(chosen.flatten(0, 1).float(), (SIDE, SIDE), mode="area")
    return small.round().byte().unflatten(0, chosen.shape[:2])
