"""Records through the real schema, for the tests of what is made from records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoder_bench.base.hashing import hash_file, hash_json, hash_text
from encoder_bench.base.record import (
    EncoderFacts,
    LanguageModelFacts,
    PartProof,
    RunRecord,
    Score,
    TaskScores,
    TrainingProof,
    run_id,
)
from encoder_bench.results.table import build_tables, to_frame

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "vqa": ("VQA Acc", "vqa_accuracy"),
    "captioning": ("CIDEr", "cider"),
    "oc": ("OC Acc", "counting_accuracy"),
    "mci": ("MCI Acc", "yesno_accuracy"),
}


def table(records: Iterable[RunRecord], **options: Any) -> pd.DataFrame:
    return to_frame(build_tables(records, **options))


def score(value: float | None, half: float | None = 2.0, samples: int = 200) -> Score:
    if value is None:
        return Score(value=None, samples=samples, images=samples // 2, reason="no Java found")
    low, high = (None, None) if half is None else (value - half, value + half)
    return Score(value=value, low=low, high=high, samples=samples, images=samples // 2)


def task_scores(
    task: str,
    value: float | None,
    *,
    half: float | None = 2.0,
    controls: Mapping[str, float] | None = None,
    spice: float | None = None,
    samples: int = 200,
    prompt: str = "{question}",
    parse_failures: int = 0,
    sha256: str = "0" * 64,
) -> TaskScores:
    column, primary = COLUMNS.get(task, (task.upper(), "exact_match"))
    metrics = {primary: score(value, half, samples)}
    if task == "captioning":
        metrics["spice"] = score(spice, half, samples)
    return TaskScores(
        primary=primary,
        column=column,
        metrics=metrics,
        controls={
            name: {primary: score(blind, 1.0, samples)} for name, blind in (controls or {}).items()
        },
        parse_failures=parse_failures,
        predictions_file=f"{task}.jsonl",
        predictions_sha256=sha256,
        definition={"prompt": prompt, "runner": task},
        metric_versions={primary: 1},
    )


def encoder_facts(
    name: str,
    *,
    supervision: Literal["fully", "weakly", "self", "none", "mixed"] = "self",
    pretrained: bool = True,
    layer: tuple[int, ...] = (-1,),
) -> EncoderFacts:
    return EncoderFacts(
        name=name,
        display_name=name.upper(),
        source=f"hf:example/{name}",
        revision="abc",
        weights_sha256=hash_text(name),
        fingerprint=hash_text(name, repr(layer)),
        pretrained=pretrained,
        family=name,
        supervision=supervision,
        pretraining_images="1.28M",
        parameters=86_000_000,
        width=768,
        tokens=196,
        resolution=(224, 224),
        layer=layer,
        transform="resize 224 bicubic",
    )


def _part(*, trains: bool, sha: str) -> PartProof:
    return PartProof(
        should_train=trains,
        parameters=1000,
        trainable_parameters=1000 if trains else 0,
        first_gradient_norm=1.5 if trains else None,
        last_gradient_norm=0.5 if trains else None,
        relative_change=0.01 if trains else 0.0,
        sha256_before=sha,
        sha256_after=hash_text(sha) if trains else sha,
    )


def make_record(
    encoder: str = "dino",
    *,
    joint: bool = False,
    seed: int = 0,
    tasks: Mapping[str, TaskScores] | None = None,
    values: tuple[float | None, float | None, float | None, float | None] = (50, 60, 40, 80),
    facts: EncoderFacts | None = None,
    created: str = "2026-01-01T00:00:00+00:00",
    data: str = "scenes",
    limit: int | None = None,
    adapter: str = "quick",
    encoder_lr: float = 1e-5,
    llm_pretrained: bool = True,
    torch: str = "2.9.0",
    controls: Mapping[str, float] | None = None,
) -> RunRecord:
    """Return a record whose every field is of the real schema; arguments vary what tests vary."""
    facts = facts or encoder_facts(encoder)
    if tasks is None:
        tasks = {
            task: task_scores(task, value, controls=controls)
            for task, value in zip(COLUMNS, values, strict=True)
        }
    stage: dict[str, Any] = {"name": "one", "projector": {"learning_rate": 1e-3}}
    stage["encoder"] = {"learning_rate": encoder_lr} if joint else None
    settings = {"trainable": joint, "layer": list(facts.layer), "dtype": "float32"}
    recipe = {
        "name": adapter,
        "description": "a recipe",
        "encoder": settings,
        "projector": {"name": "mlp" if adapter == "quick" else adapter},
        "training": {"precision": "float32", "checkpoint_every": 100},
        "stages": [stage],
    }
    identity = run_id(
        {
            "encoder": facts.fingerprint,
            "adapter": recipe,
            "seed": seed,
            "data": data,
            "limit": limit,
            "torch": torch,
            "tasks": {name: task.definition for name, task in tasks.items()},
        }
    )
    return RunRecord(
        run_id=identity,
        created=created,
        encoder=facts,
        joint=joint,
        language_model=LanguageModelFacts(
            name="tiny-llama",
            source="bundled",
            revision=None,
            weights_sha256=hash_text("llama"),
            pretrained=llm_pretrained,
            parameters=2_000_000,
            vocabulary=512,
        ),
        adapter=recipe,
        visual_tokens=64,
        data={"name": data, "fingerprint": hash_json(data)},
        training_data={"name": data, "fingerprint": hash_json(data)},
        seed=seed,
        limit=limit,
        tasks=dict(tasks),
        proof=TrainingProof(
            parts={
                "encoder": _part(trains=joint, sha=hash_text("e")),
                "projector": _part(trains=True, sha=hash_text("p")),
                "llm": _part(trains=False, sha=hash_text("l")),
            },
            reload_max_difference=0.0,
        ),
        training={"steps": 300, "images_per_second": 12.5},
        versions={"python": "3.11.7", "torch": torch},
        hardware={"device": "cpu", "cores": 2},
        seconds={"training": 100.0, "vqa": 20.0},
        peak_memory_bytes={"process": 2**30},
        command="encoder-bench run",
    )


def write_predictions(folder: Path, task: str, lines: Iterable[Mapping[str, Any]]) -> str:
    """Write predictions as the task runner does and return the file's sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(dict(line)) + "\n" for line in lines), encoding="utf-8")
    return hash_file(path)
