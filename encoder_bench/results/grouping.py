"""Which records may stand in one table, and which of them are seeds of one row.

What belongs here: identities only. Records are put into one table when test data, training data,
language model, limit, adapter and task recipes agree; the encoder and what concerns it alone
(layer, resolution, learning rate when jointly tuned) is what a table compares.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from encoder_bench.base.hashing import hash_json
from encoder_bench.base.recipes import AdapterRecipe, TaskRecipe, scoring_settings
from encoder_bench.base.record import RunRecord


@dataclass(frozen=True, slots=True)
class TableRow:
    """The runs behind one row: one encoder, one mode, each seed once.

    Attributes:
        label: the encoder's display name, with what tells it apart from its namesakes.
        records: one a seed, by seed.
        superseded: older runs of the same row and seed (other versions of packages, say), which
            the newest replaces.
    """

    label: str
    records: tuple[RunRecord, ...]
    superseded: tuple[RunRecord, ...]

    @property
    def joint(self) -> bool:
        """Whether the encoder was tuned."""
        return self.records[0].joint

    @property
    def pretrained(self) -> bool:
        """False where the encoder's weights are seeded random ones."""
        return all(record.encoder.pretrained for record in self.records)


@dataclass(frozen=True, slots=True)
class TableGroup:
    """Rows that may be compared: one table, with the heading that says what they share."""

    heading: str
    rows: tuple[TableRow, ...]

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Every run behind the table."""
        return tuple(record for row in self.rows for record in row.records)


@dataclass(slots=True)
class _Draft:
    """A table being gathered: its records and the task definitions that they agree on."""

    records: list[RunRecord] = field(default_factory=list)
    definitions: dict[str, str] = field(default_factory=dict)

    def admits(self, definitions: dict[str, str]) -> bool:
        return all(self.definitions.get(task, key) == key for task, key in definitions.items())


def group_records(records: Iterable[RunRecord]) -> list[TableGroup]:
    """Return the tables that records make, the one with the newest run first.

    The result depends on the set of records only, not on their order.
    """
    ordered = sorted(records, key=lambda record: (record.created, record.run_id))
    drafts: dict[str, list[_Draft]] = defaultdict(list)
    for record in ordered:
        definitions = {name: _task_key(record, name) for name in record.tasks}
        candidates = drafts[setting_key(record)]
        draft = next((draft for draft in candidates if draft.admits(definitions)), None)
        if draft is None:
            draft = _Draft()
            candidates.append(draft)
        draft.records.append(record)
        draft.definitions |= definitions
    flat = [draft for candidates in drafts.values() for draft in candidates]
    flat.sort(key=lambda draft: (draft.records[-1].created, draft.records[-1].run_id))
    headings = [_heading(draft) for draft in flat]
    headings = [
        f"{heading} · task recipes ({hash_json(draft.definitions)[:6]})"
        if headings.count(heading) > 1
        else heading
        for heading, draft in zip(headings, flat, strict=True)
    ]
    groups = [
        TableGroup(heading, _rows(draft.records))
        for heading, draft in zip(headings, flat, strict=True)
    ]
    return groups[::-1]


def setting_key(record: RunRecord) -> str:
    """Return the hash of what all rows of one table share, task recipes aside."""
    return hash_json(
        {
            "data": data_key(record.data),
            "training_data": data_key(record.training_data),
            "llm": record.language_model.weights_sha256,
            "adapter": _adapter_key(record.adapter),
            "limit": record.limit,
        }
    )


def data_key(description: dict[str, Any]) -> str:
    """Return the data's fingerprint, or the hash of its whole description where it has none."""
    return str(description.get("fingerprint") or hash_json(description))


def row_key(record: RunRecord) -> str:
    """Return the hash of what the seeds of one row share: encoder, its settings, the mode."""
    recipe = scoring_recipe(record.adapter)
    return hash_json(
        {
            "encoder": record.encoder.name,
            "fingerprint": record.encoder.fingerprint,
            "joint": record.joint,
            "settings": recipe["encoder"],
            "optimizer": [s.get("encoder") for s in recipe["stages"]] if record.joint else None,
        }
    )


def scoring_recipe(adapter: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded adapter recipe without what cannot change a score (its name, say)."""
    return scoring_settings(AdapterRecipe, _without(adapter, "name"))


def _adapter_key(adapter: dict[str, Any]) -> str:
    """Hash an adapter without what concerns the encoder alone."""
    shared = _without(scoring_recipe(adapter), "encoder")
    if "stages" in shared:
        shared["stages"] = [_without(stage, "encoder") for stage in shared["stages"]]
    return hash_json(shared)


def _without(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _encoder_optimizers(record: RunRecord) -> list[Any]:
    return [stage.get("encoder") for stage in record.adapter.get("stages", ())]


def _task_key(record: RunRecord, task: str) -> str:
    scores = record.tasks[task]
    definition = scoring_settings(TaskRecipe, scores.definition)
    del definition["controls"]  # which blind baselines were measured changes no score
    return hash_json({"definition": definition, "versions": scores.metric_versions})


def _heading(draft: _Draft) -> str:
    newest = draft.records[-1]
    model = newest.language_model
    data = _data_name(newest.data)
    training = _data_name(newest.training_data)
    same = data_key(newest.data) == data_key(newest.training_data) or data == training
    parts = [
        f"data {data}" if same else f"tested on {data}, trained on {training}",
        f"adapter {_adapter_name(newest)} ({_adapter_key(newest.adapter)[:6]})",
        f"LLM {model.name}" + ("" if model.pretrained else " (random weights)"),
        "all test samples" if newest.limit is None else f"at most {newest.limit} samples a task",
    ]
    return " · ".join(parts)


def _adapter_name(record: RunRecord) -> str:
    """Return the recipe's name; of a file the stem, since a folder tells a reader nothing."""
    name = str(record.adapter.get("name", "?"))
    return PurePath(name).stem if name.endswith(".toml") else name


def _data_name(description: dict[str, Any]) -> str:
    return f"{description.get('name', '?')} ({data_key(description)[:6]})"


def _rows(records: Sequence[RunRecord]) -> tuple[TableRow, ...]:
    by_row: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_row[row_key(record)].append(record)
    drafts = []
    for members in by_row.values():
        newest = {record.seed: record for record in members}
        kept = tuple(newest[seed] for seed in sorted(newest))
        older = tuple(record for record in members if newest[record.seed] != record)
        drafts.append((kept, older))
    labels = _labels([kept[0] for kept, _ in drafts])
    rows = [
        TableRow(label, kept, older) for label, (kept, older) in zip(labels, drafts, strict=True)
    ]
    order = {"fully": 0, "self": 1, "weakly": 2, "mixed": 3, "none": 4}
    return tuple(
        sorted(rows, key=lambda r: (r.joint, order[r.records[0].encoder.supervision], r.label))
    )


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """Return a display name for each row, unique within its half."""
    namesakes: dict[tuple[bool, str], list[dict[str, str]]] = defaultdict(list)
    for record in records:
        namesakes[record.joint, record.encoder.display_name].append(_traits(record))
    labels = []
    for record in records:
        peers = namesakes[record.joint, record.encoder.display_name]
        own = _traits(record)
        telling = [k for k in own if k != "weights" and len({peer[k] for peer in peers}) > 1]
        if sum(all(peer[k] == own[k] for k in telling) for peer in peers) > 1:
            telling.append("weights")
        suffix = ", ".join(f"{key} {own[key]}" for key in telling)
        name = record.encoder.display_name
        labels.append(f"{name} ({suffix})" if suffix else name)
    return labels


def _traits(record: RunRecord) -> dict[str, str]:
    """Return what can tell two rows of one display name apart, most telling first."""
    encoder = record.encoder
    rates = [stage.get("learning_rate") for stage in _encoder_optimizers(record) if stage]
    return {
        "name": encoder.name,
        "layer": ",".join(str(layer) for layer in encoder.layer),
        "resolution": "x".join(str(side) for side in encoder.resolution),
        "encoder lr": ",".join(f"{rate:g}" for rate in rates) if record.joint else "-",
        "dtype": str(record.adapter.get("encoder", {}).get("dtype", "-")),
        "weights": f"{encoder.fingerprint[:6]}/{row_key(record)[:4]}",
    }
