"""The predictions file while it grows: appended by batch, read back after a kill, finished whole.

What belongs here: JSON lines. A run that is killed leaves whole lines and perhaps half of one,
which is dropped; a finished file is rewritten in sample order in one step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from encoder_bench.base.files import write_text

_Key = tuple[str | None, str]


def choice_key(control: str | None) -> str:
    """Return what stands for a control where its answer is the likeliest candidate.

    >>> choice_key(None), choice_key("no-image")
    ('@likelihood', 'no-image@likelihood')
    """
    return f"{control or ''}@likelihood"


class PredictionsWriter:
    """Answers so far, by (control, sample id); each batch is on disk before the next is asked."""

    def __init__(self, path: Path) -> None:
        """Open the growing file beside `path`, with what an earlier run left in it."""
        self._final = path
        self._growing = path.with_suffix(".partial.jsonl")
        self._answers: dict[_Key, str] = {}
        for file in (path, self._growing):
            if file.is_file():
                self._take_up(file)
        if self._growing.is_file():
            self._cut_half_line()

    def _take_up(self, file: Path) -> None:
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
                control = row.get("control")
                self._answers[control, row["sample_id"]] = row["prediction"]
                if row.get("choice") is not None:
                    self._answers[choice_key(control), row["sample_id"]] = row["choice"]
            except (ValueError, KeyError, AttributeError):
                continue  # half a line of a killed run; its sample is asked again

    def _cut_half_line(self) -> None:
        data = self._growing.read_bytes()
        if data and not data.endswith(b"\n"):
            with self._growing.open("r+b") as stream:
                stream.truncate(data.rfind(b"\n") + 1)

    def known(self, control: str | None, sample_id: str) -> bool:
        """Return whether the sample is answered already."""
        return (control, sample_id) in self._answers

    def answer(self, control: str | None, sample_id: str) -> str:
        """Return the answer of a sample."""
        return self._answers[control, sample_id]

    def append(self, control: str | None, answers: Mapping[str, str]) -> None:
        """Write a batch of answers by sample id."""
        self._growing.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(
                {"sample_id": sample_id, "prediction": text, "control": control}, ensure_ascii=False
            )
            for sample_id, text in answers.items()
        ]
        with self._growing.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()
        self._answers |= {(control, sample_id): text for sample_id, text in answers.items()}

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the final file in one step and remove the growing one."""
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        write_text(self._final, text)
        self._growing.unlink(missing_ok=True)
