"""The table as JSON: one object a row, n/a as null with its reason."""

from __future__ import annotations

import json

import pandas as pd


def to_json(frame: pd.DataFrame) -> str:
    """Return the frame of `table` as a JSON list of rows, indented, keys in column order."""
    rows = [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
