"""How far two tables rank the same encoders alike.

What belongs here: rank correlations of `compare_reported`'s figures, with intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from encoder_bench.results.columns import HALF, SETTING


def rank_agreement(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's rho and Kendall's tau-b of ours and published, by half and column.

    Intervals are 95%, through Fisher's z, with the standard errors of the reference. With few
    encoders they are wide, and below five there is none (`Reason` says so).

    Returns:
        `Setting`, `Joint Tuning`, `Column`, `Encoders`, `Spearman`, `Spearman low`, `Spearman
        high`, `Kendall`, `Kendall low`, `Kendall high`, `Reason`.

    Reference: Bonett and Wright 2000, Psychometrika 65, equation 4 (Spearman, 1 + r^2/2) and
        Fieller, Hartley and Pearson 1957, Biometrika 44 (Kendall, 0.437).
    """
    rows = []
    for (setting, joint, column), part in comparison.groupby([SETTING, HALF, "Column"], sort=False):
        both = part.dropna(subset=["Ours", "Published"])
        rows.append(
            {SETTING: setting, HALF: joint, "Column": column, "Encoders": len(both)}
            | _correlations(both["Ours"].tolist(), both["Published"].tolist())
        )
    return pd.DataFrame(rows)


def _correlations(ours: Sequence[float], published: Sequence[float]) -> dict[str, Any]:
    from scipy.stats import kendalltau, spearmanr

    names = ("Spearman", "Spearman low", "Spearman high", "Kendall", "Kendall low", "Kendall high")
    nothing: dict[str, Any] = dict.fromkeys(names, math.nan)
    count = len(ours)
    if count < 3:
        return nothing | {"Reason": f"{count} encoders are in both tables; ranks need 3"}
    if len(set(ours)) == 1 or len(set(published)) == 1:
        return nothing | {"Reason": "all figures are equal; there are no ranks"}
    rho = float(spearmanr(ours, published).statistic)
    tau = float(kendalltau(ours, published).statistic)
    found = nothing | {"Spearman": rho, "Kendall": tau, "Reason": ""}
    if count < 5:
        return found | {"Reason": f"{count} encoders are too few for an interval"}
    spearman = _fisher(rho, math.sqrt((1 + rho**2 / 2) / (count - 3)))
    kendall = _fisher(tau, math.sqrt(0.437 / (count - 4)))
    found["Spearman low"], found["Spearman high"] = spearman
    found["Kendall low"], found["Kendall high"] = kendall
    return found


def _fisher(correlation: float, error: float) -> tuple[float, float]:
    """Return a 95% interval; a perfect correlation is taken as just short of one."""
    centre = math.atanh(max(-0.9999, min(0.9999, correlation)))
    return math.tanh(centre - 1.96 * error), math.tanh(centre + 1.96 * error)
