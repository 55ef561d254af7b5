"""What an encoder's patch tokens hold, block by block: a small head asks them for each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_bench.mllm.projectors.whitening import Whitening
from zoo.loop import effective_rank
from zoo.pool import ImagePool
from zoo.views import normalise

EPOCHS, BATCH, WIDTH, QUERIES = 12, 64, 192, 8


class PooledHead(nn.Module):
    """Two layers on each whitened token, pooled by learned queries, then one linear layer."""

    def __init__(self, tokens: Tensor, classes: int) -> None:
        """Fit the whitening to `(P, N, D)` tokens."""
        super().__init__()
        _, places, width = tokens.shape
        self.whitening = Whitening(width)
        self.whitening.fit(tokens[:1000].flatten(0, 1))
        self.layers = nn.Sequential(nn.Linear(width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.place = nn.Parameter(0.02 * torch.randn(places, WIDTH))
        self.queries = nn.Parameter(0.1 * torch.randn(QUERIES, WIDTH))
        self.head = nn.Sequential(
            nn.Linear(QUERIES * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, classes)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `(B, C)` logits of `(B, N, D)` tokens."""
        read = self.layers(self.whitening(tokens)) + self.place
        weight = (self.queries @ read.mT / WIDTH**0.5).softmax(dim=-1)
        logits: Tensor = self.head((weight @ read).flatten(1))
        return logits


@torch.no_grad()
def patch_tokens(model: Any, images: Tensor) -> list[Tensor]:
    """Return `(P, N, D)` patch tokens after every block of `(P, 3, H, W)` uint8 images."""
    found: list[list[Tensor]] = []
    for part in torch.split(images, 256):
        states = model(normalise(part.float() / 255.0), output_hidden_states=True).hidden_states
        leading = states[0].shape[1] - (part.shape[-1] // model.config.patch_size) ** 2
        found.append([state[:, leading:] for state in states[1:]])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def measure(model: Any, known: ImagePool, asked: ImagePool) -> list[dict[str, Any]]:
    """Return one row per block: mean average precision in percent of each group of classes, rank.

    The head learns from the images of `known`; `asked` is what it is measured on.
    """
    rows = []
    blocks = zip(patch_tokens(model, known.images), patch_tokens(model, asked.images), strict=True)
    for block, (learnt, tested) in enumerate(blocks, start=1):
        scores = _scores(learnt, known.labels, tested)
        rank = effective_rank(tested[:100].flatten(0, 1))
        rows.append({"block": block, "rank": round(rank, 1), **_by_group(scores, asked)})
    return rows


def prior(pool: ImagePool) -> dict[str, float]:
    """Return what the measure gives scores that know nothing."""
    return _by_group(torch.zeros_like(pool.labels), pool)


def _scores(tokens: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = PooledHead(tokens.cpu(), labels.shape[1]).to(tokens.device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.05)
        steps = EPOCHS * (1 + len(tokens) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            index = torch.randint(len(tokens), (BATCH,))
            loss = F.binary_cross_entropy_with_logits(head(tokens[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return torch.cat([head(part) for part in torch.split(asked, 256)])


def _by_group(scores: Tensor, pool: ImagePool) -> dict[str, float]:
    from sklearn.metrics import average_precision_score

    found, start = {}, 0
    for about, classes in pool.classes.items():
        columns = slice(start, start := start + len(classes))
        truth, guess = (values[:, columns].cpu().numpy() for values in (pool.labels, scores))
        present = truth.any(axis=0)
        precision = average_precision_score(truth[:, present], guess[:, present])
        found[about] = round(100 * float(np.mean(precision)), 1)
    return found
