"""The table as comma-separated values: every column of the frame, numbers unrounded."""

from __future__ import annotations

import pandas as pd


def to_csv(frame: pd.DataFrame) -> str:
    """Return the frame of `table` as CSV; n/a is an empty cell with its reason in `C reason`."""
    return str(frame.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
