"""Optimal transport between two sets by Sinkhorn's iterations (Cuturi, NeurIPS 2013), in the domain of logarithms."""

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn(scores: Tensor, iterations: int, bucket: Tensor | None = None) -> Tensor:
    """The plan [..., M, N] of the largest sum of plan * scores + its entropy, as float32 and without a gradient.

    Each row sums to 1 and each column to M / N (exactly only after many iterations). With `bucket`, a score that
    broadcasts to [...], there is one more row and one more column of that score, of mass N and M, that take what fits
    nothing: rows and columns then sum to 1 or less. They are not part of the plan that is returned (SuperGlue, Sarlin
    et al., CVPR 2020; Norton, Lin et al., ICLR 2024). scores: similarities divided by the weight of the entropy.
    """
    rows, columns = scores.shape[-2:]
    scores = scores.float()
    mass_of_rows, mass_of_columns = scores.new_zeros(rows), scores.new_full((columns,), rows / columns).log()
    if bucket is not None:
        scores = _with_bucket(scores, bucket.float())
        mass_of_rows = scores.new_tensor([1.0] * rows + [columns]).log()
        mass_of_columns = scores.new_tensor([1.0] * columns + [rows]).log()
    of_columns = torch.zeros_like(scores[..., 0, :])
    for _ in range(iterations):
        of_rows = mass_of_rows - (scores + of_columns[..., None, :]).logsumexp(-1)
        of_columns = mass_of_columns - (scores + of_rows[..., None]).logsumexp(-2)
    plan = (scores + of_rows[..., None] + of_columns[..., None, :]).exp()
    return plan[..., :rows, :columns]


def _with_bucket(scores: Tensor, bucket: Tensor) -> Tensor:
    """[..., M + 1, N + 1]."""
    *batch, rows, columns = scores.shape
    framed = bucket[..., None, None].expand(*batch, rows + 1, columns + 1).clone()
    framed[..., :rows, :columns] = scores
    return framed
