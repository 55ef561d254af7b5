"""What papers compute from frozen features to foretell how an encoder does in a multimodal LLM.

Axes: P images, N patch tokens, D width, R width of the reference, C categories, T text width.
"""

import itertools
import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from encoder_bench.metrics.statistics import Matrix

_RIDGE = 1e-2
_MAX_PAIRS_PER_CATEGORY = 50
_INSIDE = 0.5


class Correspondence(NamedTuple):
    """Share of patches, 0 to 1, whose nearest patch is right, and the share expected by chance."""

    share: float
    chance: float


def effective_rank(features_PD: Matrix) -> float:
    """Return exp of the entropy of the normalised singular values: 1 to min(P, D).

    Reference: Roy and Vetterli 2007; Garrido et al. 2023 (RankMe, arXiv 2210.02885), equation 2.
    """
    values = np.linalg.svd(features_PD, compute_uv=False)
    shares = values / values.sum() + np.finfo(np.float64).eps
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(
    train_PND: Tensor, reference_train_PNR: Tensor, test_PND: Tensor, reference_test_PNR: Tensor
) -> float:
    """Return the A-score: how near a reference's patch tokens come to an encoder's, -1 to 1.

    The mean over patches and test images of the largest cosine to any patch token of the reference
    in the same image. The paper compares both after projectors trained with the LLM; here a ridge
    regression from the encoder's tokens to the reference's, fitted on training images, stands for
    that training. Token grids are equal (pool them before).

    Reference: Yang et al. 2024, "Law of Vision Representation in MLLMs" (arXiv 2408.16357),
    section 3.1; `A_score/compute.py` of its repository.
    """
    inputs, targets = train_PND.flatten(0, 1).double(), reference_train_PNR.flatten(0, 1).double()
    mean, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    offset = targets.mean(0)
    x = (inputs - mean) / scale
    gram = x.T @ x + _RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights_DR = torch.linalg.solve(gram, x.T @ (targets - offset))
    mapped = ((test_PND.double() - mean) / scale) @ weights_DR + offset
    reference = F.normalize(reference_test_PNR.double(), dim=-1)
    cosine_PNN = F.normalize(mapped, dim=-1) @ reference.transpose(1, 2)
    return float(cosine_PNN.amax(dim=-1).mean())


def correspondence(tokens_PND: Tensor, covered_PCN: Tensor, *, seed: int = 0) -> Correspondence:
    """Return the C-score: for two images of one category, whether patches of it find each other.

    For each patch on an object, the most similar patch (cosine) of another image that shows the
    category is right where an object of it is there too. `covered_PCN` is the share of each patch,
    0 to 1, that objects of a category cover. Pairs are drawn by the seed; the mean is over pairs.

    The paper counts key points of SPair-71k within 0.1 of the object's size (PCK@0.10); boxes of
    an instances file are what most data has, and they count regions instead of points.

    Reference: Yang et al. 2024 (arXiv 2408.16357), section 3.2; Min et al. 2019 (SPair-71k).

    Raises:
        ValueError: no two images share a category that covers a patch of each.
    """
    inside_PCN = covered_PCN >= _INSIDE
    unit_PND = F.normalize(tokens_PND.float(), dim=-1)
    rng = random.Random(seed)
    right, by_chance = [], []
    for category in range(covered_PCN.shape[1]):
        shown = torch.nonzero(inside_PCN[:, category].any(dim=-1)).flatten().tolist()
        pairs = list(itertools.permutations(shown, 2))
        for one, other in rng.sample(pairs, min(len(pairs), _MAX_PAIRS_PER_CATEGORY)):
            asked = unit_PND[one][inside_PCN[one, category]]
            target_N = inside_PCN[other, category]
            nearest = (asked @ unit_PND[other].T).argmax(dim=-1)
            right.append(float(target_N[nearest].float().mean()))
            by_chance.append(float(target_N.float().mean()))
    if not right:
        raise ValueError("no two images share a category")
    return Correspondence(float(np.mean(right)), float(np.mean(by_chance)))


def gromov_wasserstein(images_PD: Matrix, texts_PT: Matrix) -> float:
    """Return the Gromov-Wasserstein distance between images and the texts about them; 0 is best.

    Both are metric spaces of cosine distances, each divided by its mean, with equal weights; the
    coupling is found by conditional gradient from the known pairing, so that it is a local optimum.

    Reference: Memoli 2011; Peyre et al. 2016; its use to choose encoders: arXiv 2605.01325 (2026),
    whose code is not public.
    """
    import ot

    def distances(features: Matrix) -> Matrix:
        unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        found = np.asarray(1.0 - unit @ unit.T)
        return found / max(float(found.mean()), 1e-12)

    number = len(images_PD)
    weights = np.full(number, 1.0 / number)
    squared = ot.gromov.gromov_wasserstein2(
        distances(images_PD), distances(texts_PT), weights, weights, "square_loss",
        G0=np.diag(weights),
    )  # fmt: skip
    return float(np.sqrt(max(0.0, float(squared))))
