"""The cells of a sweep: one run each, named, planned and kept as a small folder of its own.

What belongs here: which runs a sweep consists of. Doing one is `worker.py`'s job, and where it is
done is `launchers.py`'s.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder_bench.base.errors import RecipeError, RecordError
from encoder_bench.base.files import write_text
from encoder_bench.base.hashing import hash_json
from encoder_bench.pipeline.plan import RunPlan, make_plan

MODES = ("frozen", "joint")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep.

    Attributes:
        encoder: as `encoder-bench run --encoder` takes it.
        joint: tune the encoder too.
        seed: of everything.
        adapter: an adapter recipe's name or file.
        settings: every other argument of `encoder_bench.pipeline.plan.make_plan`, as JSON.
    """

    encoder: str
    joint: bool
    seed: int
    adapter: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """A line for people: `dinov2-l frozen seed 0 (quick)`."""
        return f"{self.encoder} {MODES[self.joint]} seed {self.seed} ({Path(self.adapter).stem})"

    @property
    def command(self) -> str:
        """A command that does this cell; what else was set stands in the record's recipe."""
        words = ["encoder-bench", "sweep", "--encoders", self.encoder, "--modes", MODES[self.joint]]
        words += ["--seeds", str(self.seed), "--adapter", Path(self.adapter).name]
        data = self.settings.get("data") or "scenes"
        return shlex.join([*words, "--data", data if data.startswith("scenes") else "DIR"])

    def plan(self, results: Path) -> RunPlan:
        """Return the run's resolved plan.

        Raises:
            RecipeError: a recipe or a setting is wrong.
            UnknownNameError: no such encoder, recipe, projector or task.
        """
        settings = dict(self.settings)
        weights = settings.pop("weights", None)
        return make_plan(
            encoder=self.encoder,
            joint=self.joint,
            seed=self.seed,
            adapter=self.adapter,
            results=results,
            weights=Path(weights) if weights else None,
            **settings,
        )

    def identity(self, results: Path) -> str:
        """Return sixteen digits that change with anything that could change the cell's scores."""
        plan = self.plan(results)
        content = {
            **plan.scoring_settings(),
            "data": plan.data,
            "training_data": plan.training_data,
            "weights": str(plan.weights) if plan.weights else None,
            "device": plan.device,
        }
        return hash_json(content)[:16]

    def folder(self, results: Path) -> Path:
        """Return where the cell's description and state lie, written or not."""
        return cells_folder(results) / self.identity(results)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {
            "encoder": self.encoder,
            "joint": self.joint,
            "seed": self.seed,
            "adapter": self.adapter,
            "settings": dict(self.settings),
        }


def make_cells(
    encoders: Sequence[str],
    modes: Sequence[str],
    seeds: Sequence[int],
    adapters: Sequence[str],
    *,
    settings: Mapping[str, Any],
    weights: Mapping[str, str],
) -> list[Cell]:
    """Return the matrix, encoder by encoder, so that a cache of features is used while it is warm.

    Args:
        encoders: each as `--encoder` takes it.
        modes: of `MODES`.
        seeds: whole numbers.
        adapters: recipes' names or files.
        settings: what all cells share; arguments of `make_plan`.
        weights: encoder -> its checkpoint on disk.

    Raises:
        RecipeError: an empty or a repeated entry, an unknown mode, or weights of no encoder.
    """
    for flag, values in (
        ("--encoders", encoders),
        ("--modes", modes),
        ("--seeds", seeds),
        ("--adapter", adapters),
    ):
        if not values:
            raise RecipeError(f"{flag} is empty; name at least one")
        repeated = [value for value in values if list(values).count(value) > 1]
        if repeated:
            raise RecipeError(f"{flag} names {repeated[0]!r} twice")
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise RecipeError(f"--modes {unknown[0]}: choose of {', '.join(MODES)}")
    stray = [name for name in weights if name not in encoders]
    if stray:
        raise RecipeError(f"--weights {stray[0]}=...: --encoders does not name {stray[0]}")
    return [
        Cell(
            encoder,
            mode == "joint",
            seed,
            adapter,
            {**settings, **({"weights": weights[encoder]} if encoder in weights else {})},
        )
        for encoder, adapter, mode, seed in itertools.product(encoders, adapters, modes, seeds)
    ]


def cells_folder(results: Path) -> Path:
    """Return where the cells of a results folder lie, one folder each."""
    return results / "sweep"


def write_cell(cell: Cell, results: Path) -> Path:
    """Write a cell's description and return its folder; an earlier one of the same is kept."""
    folder = cell.folder(results)
    write_text(folder / "cell.json", json.dumps(cell.as_json(), indent=1) + "\n")
    return folder


def read_cell(folder: Path) -> Cell:
    """Return the cell that a folder describes.

    Raises:
        RecordError: `cell.json` is missing or damaged.
    """
    path = folder / "cell.json"
    try:
        return Cell(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RecordError(f"{path}: not a sweep's cell ({error}); run the sweep again") from error
