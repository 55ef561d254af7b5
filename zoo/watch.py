"""Watching for collapse: how many directions the features of a batch really use.

What belongs here: numbers that tell a healthy run from one whose features became a constant.

Axes: B images, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLLAPSED_RANK = 2.0
"""Below this effective rank the features hold next to nothing; the run warns."""


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """Return exp(entropy) of the normalised singular values of centred `(B, D)` features.

    1 means a single direction, min(B - 1, D) that all are used alike; 0 that all rows are equal.

    Reference: Roy & Vetterli 2007, "The effective rank".

    >>> effective_rank(torch.ones(4, 3))
    0.0
    >>> round(effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 3)
    2.0
    """
    centred = features.float() - features.float().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    total = values.sum()
    if total < 1e-6:
        return 0.0
    share = values / total
    return float((-(share * share.clamp_min(1e-12).log()).sum()).exp())
