"""Which records may share one table, and which of them are seeds of one row."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from encoder_bench.base.hashing import hash_json
from encoder_bench.base.recipes import AdapterRecipe, TaskRecipe, scoring_settings
from encoder_bench.base.record import RunRecord
from encoder_bench.encoders.registry import RANDOM
from encoder_bench.results.score import score_sources

_OF_ONE_MODE = ("encoder lr", "recipe")
_LAST_RESORTS = ("weights", "recipe")
_SUPERVISION = ("fully", "self", "weakly", "mixed", "unknown", "none")


@dataclass(frozen=True, slots=True)
class TableRow:
    """The runs behind one row: one encoder, one mode, each seed once.

    Attributes:
        label: the encoder's display name, with what distinguishes it from others of that name.
        records: one per seed, by seed.
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
    def mode(self) -> str:
        """`frozen` or `joint`."""
        return self.records[0].mode

    @property
    def name(self) -> str:
        """`DINOv2, joint`."""
        return f"{self.label}, {self.mode}"

    @property
    def pretrained(self) -> bool:
        """False where the encoder's weights are seeded random ones."""
        return all(record.encoder.pretrained for record in self.records)


@dataclass(frozen=True, slots=True)
class TableGroup:
    """Rows that may be compared: one table, with a heading of what they share."""

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


def group_records(records: Iterable[RunRecord]) -> list[TableGroup]:
    """Return the tables that records make, the one with the newest run first.

    Records share a table when test data, training data, language model, limit, adapter and task
    recipes agree; the encoder and its own settings (layer, resolution, learning rate when jointly
    tuned) are what a table compares. The order of the records does not matter.
    """
    drafts: dict[str, list[_Draft]] = defaultdict(list)
    for record in sorted(records, key=_age):
        definitions = {name: task_key(record, name) for name in record.tasks}
        # a column holds one task's scores, whatever other recipe has named the same column
        sources = score_sources(record).items()
        definitions |= {f"column {c}": f"{each.task} {each.metric}" for c, each in sources}
        candidates = drafts[setting_key(record)]
        for draft in candidates:
            if all(draft.definitions.get(task, key) == key for task, key in definitions.items()):
                break
        else:
            draft = _Draft()
            candidates.append(draft)
        draft.records.append(record)
        draft.definitions |= definitions
    flat = [draft for candidates in drafts.values() for draft in candidates]
    flat.sort(key=lambda draft: _age(draft.records[-1]), reverse=True)
    headings = [_heading(draft.records[-1]) for draft in flat]
    groups = []
    for draft, heading in zip(flat, headings, strict=True):
        alike = [other for other, text in zip(flat, headings, strict=True) if text == heading]
        marks = []
        for what, of in (("LLM weights", _llm_weights), ("task recipes", _definitions_key)):
            if len({of(other) for other in alike}) > 1:
                marks.append(f" · {what} ({of(draft)[:6]})")
        groups.append(TableGroup(heading + "".join(marks), _rows(draft.records)))
    return groups


def _llm_weights(draft: _Draft) -> str:
    return draft.records[-1].language_model.weights_sha256


def _definitions_key(draft: _Draft) -> str:
    return hash_json(draft.definitions)


def setting_key(record: RunRecord) -> str:
    """Return the hash of what all rows of one table share, task recipes aside."""
    model = record.language_model
    shared = {
        "data": data_key(record.data),
        "training_data": data_key(record.training_data),
        "llm": model.weights_sha256,
        "adapter": adapter_key(record.adapter),
        "limit": record.limit,
    }
    return hash_json(shared | ({"template": model.template} if model.template else {}))


def task_key(record: RunRecord, task: str) -> str:
    """Return the hash of a task's definition, as far as it changes scores."""
    scores = record.tasks[task]
    definition = scoring_task(scores.definition)
    return hash_json({"definition": definition, "versions": scores.metric_versions})


def scoring_task(definition: dict[str, Any]) -> dict[str, Any]:
    """Return what of a recorded task recipe changes its scores; blind baselines do not."""
    return _without(scoring_settings(TaskRecipe, definition), "controls")


def data_key(description: dict[str, Any]) -> str:
    """Return the data's fingerprint, or the hash of its whole description where it has none."""
    return str(description.get("fingerprint") or hash_json(description))


def row_key(record: RunRecord) -> str:
    """Return the hash of what the seeds of one row share: encoder, its settings, the mode."""
    encoder, recipe = record.encoder, scoring_recipe(record.adapter)
    # The seeds of a random twin have weights of their own; its architecture is what they share.
    return hash_json(
        {
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint
            if encoder.pretrained
            else [*_shape(record), encoder.parameters],
            "joint": record.joint,
            "settings": recipe["encoder"],
            "optimizer": _encoder_optimizers(recipe) if record.joint else None,
        }
    )


def pair_key(record: RunRecord) -> str:
    """Return the hash of what an encoder's frozen and jointly tuned rows share."""
    encoder, settings = record.encoder, scoring_recipe(record.adapter)["encoder"]
    same = encoder.fingerprint if encoder.pretrained else encoder.parameters
    return hash_json([encoder.name, same, encoder.transform, _without(settings, "trainable")])


def find_twin(row: TableRow, rows: Sequence[TableRow]) -> int | None:
    """Return where the row with random weights of the same architecture, settings and mode is.

    That is `random:NAME`; without it, the one row of random weights with as many and as wide tokens
    of the same preprocessing, as `tiny-random` is to the tiny encoders.
    """
    own = row.records[0]
    shape, alike = _shape(own), []
    for place, other in enumerate(rows):
        twin = other.records[0]
        if other.pretrained or not row.pretrained or _shape(twin) != shape:
            continue
        if twin.encoder.name == RANDOM + own.encoder.name:
            if twin.encoder.parameters == own.encoder.parameters:
                return place
        elif RANDOM not in twin.encoder.name:  # nor one of which a part alone is random
            alike.append(place)
    return alike[0] if len(alike) == 1 else None


def false_twins(rows: Sequence[TableRow]) -> Iterator[tuple[TableRow, TableRow]]:
    """Yield each encoder with a `random:NAME` of its mode that is not its twin.

    Its checkpoint's configuration says other pixels than the architecture's own, as a rule.
    """
    for row in rows:
        name, place = RANDOM + row.records[0].encoder.name, find_twin(row, rows)
        same = [other for other in rows if other.records[0].encoder.name == name]
        if row.pretrained and (place is None or rows[place] not in same):
            yield from ((row, other) for other in same if other.joint == row.joint)


def _shape(record: RunRecord) -> list[Any]:
    """Return what an encoder's row is besides its name and its weights."""
    encoder, recipe = record.encoder, scoring_recipe(record.adapter)
    tuned = _encoder_optimizers(recipe) if record.joint else None
    shape = [encoder.transform, encoder.width, encoder.tokens]
    return [*shape, record.joint, recipe["encoder"], tuned]


def scoring_recipe(adapter: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded adapter recipe without what cannot change a score."""
    return scoring_settings(AdapterRecipe, _without(adapter, "name"))


def adapter_key(adapter: dict[str, Any]) -> str:
    """Hash an adapter without what concerns the encoder alone."""
    shared = _without(scoring_recipe(adapter), "encoder")
    return hash_json(shared | {"stages": [_without(s, "encoder") for s in shared["stages"]]})


def _age(record: RunRecord) -> tuple[str, str]:
    return record.created, record.run_id


def _without(settings: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


def _encoder_optimizers(recipe: dict[str, Any]) -> list[Any]:
    return [stage.get("encoder") for stage in recipe["stages"]]


def _heading(newest: RunRecord) -> str:
    model = newest.language_model
    data, training = _data_name(newest.data), _data_name(newest.training_data)
    same = data_key(newest.data) == data_key(newest.training_data) or data == training
    adapter = str(newest.adapter.get("name", "?"))
    if adapter.endswith(".toml"):
        adapter = PurePath(adapter).stem
    tested = f"data {data}" if same else f"tested on {data}, trained on {training}"
    llm = f"LLM {model.name}" + ("" if model.pretrained else " (random weights)")
    if model.template:
        llm += f", chat template ({hash_json(model.template)[:6]})"
    limit = newest.limit
    samples = "all test samples" if limit is None else f"at most {limit} samples per task"
    return f"{tested} · adapter {adapter} ({adapter_key(newest.adapter)[:6]}) · {llm} · {samples}"


def _data_name(description: dict[str, Any]) -> str:
    return f"{description.get('name', '?')} ({data_key(description)[:6]})"


def _rows(records: Sequence[RunRecord]) -> tuple[TableRow, ...]:
    """Return the rows of one table's records: frozen, joint; random twins last; by supervision."""
    by_row: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_row[row_key(record)].append(record)
    labels = _labels([members[-1] for members in by_row.values()])
    rows = []
    for label, members in zip(labels, by_row.values(), strict=True):
        newest = {record.seed: record for record in members}
        kept = tuple(newest[seed] for seed in sorted(newest))
        older = tuple(record for record in members if newest[record.seed] is not record)
        rows.append(TableRow(label, kept, older))

    def place(row: TableRow) -> tuple[bool, bool, int, str]:
        supervision = _SUPERVISION.index(row.records[0].encoder.supervision)
        return row.joint, not row.pretrained, supervision, row.label

    return tuple(sorted(rows, key=place))


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """Return a display name for each row, unique within its mode, the same in the other mode."""
    namesakes: dict[str, list[tuple[bool, dict[str, str]]]] = defaultdict(list)
    for record in records:
        namesakes[record.encoder.display_name].append((record.joint, _traits(record)))
    labels = []
    for record in records:
        name, own = record.encoder.display_name, _traits(record)
        both = [traits for _, traits in namesakes[name]]
        mode = [traits for joint, traits in namesakes[name] if joint == record.joint]
        telling: list[str] = []
        for key in own:
            peers = mode if key in _OF_ONE_MODE else both
            if key in _LAST_RESORTS:  # where the other traits do not tell rows apart
                peers = [peer for peer in peers if all(peer[k] == own[k] for k in telling)]
            if len({peer[key] for peer in peers}) > 1:
                telling.append(key)
        suffix = ", ".join(f"{key} {own[key]}" for key in telling)
        labels.append(f"{name} ({suffix})" if suffix else name)
    return labels


def _traits(record: RunRecord) -> dict[str, str]:
    """Return what can distinguish two rows of one display name, most telling first."""
    encoder = record.encoder
    rates = [each.get("learning_rate") for each in _encoder_optimizers(record.adapter) if each]
    return {
        "name": encoder.name,
        "layer": ",".join(str(layer) for layer in encoder.layer),
        "resolution": "x".join(str(side) for side in encoder.resolution),
        "encoder lr": ",".join(f"{rate:g}" for rate in rates) if record.joint else "-",
        "dtype": str(record.adapter.get("encoder", {}).get("dtype", "-")),
        "weights": encoder.fingerprint[:6] if encoder.pretrained else "random",
        "recipe": row_key(record)[:4],
    }
