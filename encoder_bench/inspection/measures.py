"""What frozen features know of held-out scenes: k-nearest neighbours and a linear probe.

What belongs here: the two measures that a model card quotes. Both read the mean patch token, as
the adapters read patch tokens, and predict the multi-label classes of a scene.

Axes: B images, N patches, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over classes of average precision, in percent.

    Classes without a positive image are passed over.

    Args:
        scores: `(B, C)`.
        labels: `(B, C)` 0 or 1.

    >>> scores = torch.tensor([[0.9], [0.8], [0.1]])
    >>> round(mean_average_precision(scores, torch.tensor([[1.0], [0.0], [1.0]])), 2)
    83.33
    """
    order = scores.argsort(dim=0, descending=True)
    ranked = labels.gather(0, order)
    ranks = torch.arange(1, len(ranked) + 1, device=ranked.device)[:, None]
    precision = ranked.cumsum(dim=0) / ranks
    positives = ranked.sum(dim=0)
    present = positives > 0
    average = (precision * ranked).sum(dim=0)[present] / positives[present]
    return float(average.mean() * 100)


def nearest_neighbour_scores(
    train: Tensor, train_labels: Tensor, test: Tensor, *, neighbours: int = 20
) -> Tensor:
    """Return `(B, C)` scores: labels of the nearest by cosine, weighted by exp(similarity / 0.07).

    Reference: Caron et al. 2021 (DINO), the weighted k-NN of its evaluation; k = 20.
    """
    similarity = F.normalize(test, dim=-1) @ F.normalize(train, dim=-1).T
    near = similarity.topk(min(neighbours, len(train)), dim=1)
    weight = (near.values / 0.07).softmax(dim=1)
    return (weight[:, :, None] * train_labels[near.indices]).sum(dim=1)


def linear_probe_scores(
    train: Tensor, train_labels: Tensor, test: Tensor, *, steps: int = 300, seed: int = 0
) -> Tensor:
    """Return `(B, C)` logits of a linear layer on standardised features, fitted by AdamW."""
    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(train.shape[1], train_labels.shape[1])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(layer(train), train_labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        scores: Tensor = layer(test)
    return scores
