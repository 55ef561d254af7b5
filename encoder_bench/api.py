"""The Python interface: `encoder_bench.run`, `table`, `compare` and the others of `__all__`.

Each function does what the command of the same name does, and returns typed objects. Arguments that
a function does not explain mean what they mean for `run`; a run is a record, its id or the start of
it, or `ENCODER/MODE[/SEED]`.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from encoder_bench.base.errors import needs_extra
from encoder_bench.base.paths import RESULTS, with_home
from encoder_bench.base.progress import make_reporter
from encoder_bench.base.recipes import LanguageModelSettings, load_task
from encoder_bench.base.record import RunRecord, TaskScores, read_records, require_records
from encoder_bench.pipeline.plan import DEFAULT_ENCODER, DEFAULT_TASKS, make_plan
from encoder_bench.results.export import load_results as load_results
from encoder_bench.results.grouping import scoring_task

if TYPE_CHECKING:
    import pandas as pd

    from encoder_bench.inspection.predict import Forecast
    from encoder_bench.mllm.model import MLLM
    from encoder_bench.results.compare import RunComparison
    from encoder_bench.results.verdict import Verdict


P = ParamSpec("P")
T = TypeVar("T")
_ONE_AT_A_TIME = threading.RLock()


def _alone(function: Callable[P, T]) -> Callable[P, T]:
    """Let one thread at a time in, and leave the caller's random generators as they were.

    PyTorch's generators and what transformers sets while it loads are of the whole process.
    """

    @functools.wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        import torch

        with _ONE_AT_A_TIME:
            used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            devices = range(torch.cuda.device_count() if used else 0)
            with torch.random.fork_rng(devices=devices):
                return function(*args, **kwargs)

    return waiting


@_alone
def run(
    encoder: str = DEFAULT_ENCODER,
    *,
    joint: bool = False,
    adapter: str = "quick",
    data: str = "scenes",
    training_data: str | None = None,
    mixture: Sequence[str] = (),
    tasks: Sequence[str] = DEFAULT_TASKS,
    seed: int = 0,
    limit: int | None = None,
    controls: str | None = None,
    steps: int | None = None,
    weights: str | Path | None = None,
    results: str | Path = RESULTS,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> RunRecord:
    """Train an adapter on an encoder, score it on every task, and return its record.

    A finished run of the same settings is returned as it is; an interrupted one resumes.

    Args:
        encoder: a name of `encoder-bench encoders`, or a general form such as `timm:NAME`.
        joint: tune the encoder too.
        adapter: an adapter recipe's name or TOML file.
        data: `scenes`, `coco`, or a folder in the official layouts.
        training_data: where training samples come from; None for `data`.
        mixture: recipes of what to train on below `training_data`: one or one a stage, or `none`.
        tasks: task recipes' names or TOML files.
        seed: random seed.
        limit: at most so many test samples per task.
        controls: blind baselines, `none`, `cheap` or `all`; None for the recipe's.
        steps: optimizer steps of each stage, instead of the recipe's.
        weights: the encoder's checkpoint on disk, instead of the Hub.
        results: folder of records, predictions and checkpoints.
        device: `auto` or a torch device.
        settings: any other key of the adapter recipe, as in `{"llm.name": "smollm2-135m"}`.
        trust_remote_code: let a Hub repository run its own Python code.
        quiet: print warnings only.

    Raises:
        EncoderBenchError: bad input, a failed training check, a full disk; nothing is lost.
    """
    given = dict(locals())
    from encoder_bench.pipeline.run import run as run_plan

    plan = make_plan(
        encoder=encoder, joint=joint, adapter=adapter, data=data, training_data=training_data,
        mixture=mixture, tasks=tasks, seed=seed, limit=limit, controls=controls, steps=steps,
        weights=None if weights is None else with_home(weights), results=with_home(results),
        device=device, settings=settings, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return run_plan(plan, make_reporter(quiet=quiet), command=_call(given)).record


def _call(given: Mapping[str, Any]) -> str:
    """Return a call of `run` as the record keeps it, without what is the default."""
    parameters = inspect.signature(run).parameters
    changed = {name: value for name, value in given.items() if value != parameters[name].default}
    words = (f"{name}={(str(v) if isinstance(v, Path) else v)!r}" for name, v in changed.items())
    return f"encoder_bench.run({', '.join(words)})"


@_alone
def load_model(
    run: str | RunRecord,
    *,
    results: str | Path = RESULTS,
    weights: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> MLLM:
    """Return a finished run's trained model, in eval mode, verified to be the run's own.

    `weights` is the encoder's checkpoint on disk, if the run was given one; `trust_remote_code`
    lets a Hub repository run its own Python code, as `run` was told.

    Raises:
        RecordError: no such run, or its trained weights are gone.
        WeightsError: the encoder or the LLM found now is not the run's.
    """
    from encoder_bench.pipeline.build import load_run

    folder, path = with_home(results), None if weights is None else with_home(weights)
    return load_run(
        folder, _record(run, folder), weights=path, device=device,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip


@_alone
def evaluate(
    run: str | RunRecord,
    *,
    tasks: Sequence[str],
    output: str | Path,
    data: str = "scenes",
    results: str | Path = RESULTS,
    limit: int | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> dict[str, TaskScores]:
    """Return a finished run's scores on other tasks or other data, by task.

    Predictions go to the folder `output`, `TASK.jsonl` each; resumes if interrupted, and refuses a
    folder with another run's answers, or answers to other questions. The baseline `mean-image` is
    left out, since it needs the training images.

    Raises:
        EncoderBenchError: bad input; nothing is lost.
    """
    from encoder_bench.data.folder import open_data
    from encoder_bench.pipeline.predictor import ImagePredictor
    from encoder_bench.tasks.evaluate import evaluate as evaluate_tasks
    from encoder_bench.tasks.predictions import claim_answers
    from encoder_bench.tasks.task import read_samples

    reporter, record = make_reporter(quiet=quiet), _record(run, with_home(results))
    folder = open_data(data, reporter)
    asked = []
    for name in tasks:
        recipe = load_task(name)
        controls = tuple(control for control in recipe.controls if control != "mean-image")
        recipe = recipe.model_copy(update={"controls": controls})
        asked.append(read_samples(folder, Path(name).stem, recipe, limit=limit))
    model = load_model(
        record, results=results, weights=weights, device=device,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    made = [record.run_id, folder.fingerprint()]
    recipes = [scoring_task(task.recipe.model_dump(mode="json")) for task in asked]
    makers = zip(asked, recipes, strict=True)
    claims = [(task.name, [*made, recipe, len(task.samples)]) for task, recipe in makers]
    claim_answers(with_home(output), claims)
    return evaluate_tasks(
        ImagePredictor(model),
        asked,
        with_home(output),
        batch_images=record.adapter["evaluation_batch_images"],
        seed=record.seed,
        reporter=reporter,
    )


def table(results: str | Path = RESULTS) -> pd.DataFrame:
    """Return the comparison table of a results folder, one row per encoder and mode.

    Raises:
        RecordError: a record is damaged.
    """
    from encoder_bench.results.contrasts import over_twins, usual_ties
    from encoder_bench.results.table import build_tables, to_frame

    folder = with_home(results)
    records = read_records(folder)
    ties, _ = usual_ties(folder, records)
    gains = None if ties is None else over_twins(folder, records)
    return to_frame(build_tables(records, ties=ties, gains=gains))


def compare(
    a: str | RunRecord, b: str | RunRecord, *, results: str | Path = RESULTS
) -> RunComparison:
    """Return paired differences B − A between two runs, or between all seeds of two rows.

    `ENCODER/MODE` without the seed stands for all seeds.

    Raises:
        RecordError: no such run, or its predictions are missing or damaged.
    """
    from encoder_bench.results.compare import compare_runs
    from encoder_bench.results.runs import find_runs

    folder = with_home(results)
    sides = [(s,) if isinstance(s, RunRecord) else find_runs(folder, s) for s in (a, b)]
    return compare_runs(folder, *sides)


def recommend(
    results: str | Path = RESULTS, *, max_gflops: float | None = None, tasks: Sequence[str] = ()
) -> list[Verdict]:
    """Return which encoder to choose, for each table: `.sentences()` says it in words.

    `max_gflops` leaves encoders of at most so many GFLOPs per image; `tasks` are those to choose
    by, the ones that Avg counts by default.

    Raises:
        RecordError: predictions are missing or damaged, or no row is left.
        UnknownNameError: no run has such a task.
    """
    from encoder_bench.results.verdict import recommend as choose

    folder = with_home(results)
    return choose(folder, require_records(folder), max_gflops=max_gflops, tasks=tasks)


def report(
    results: str | Path = RESULTS,
    *,
    output: str | Path | None = None,
    data: str | None = None,
    features: bool = True,
    samples: int = 250,
    quiet: bool = False,
) -> Path:
    """Write the report, one self-contained HTML page, and return its path.

    Args:
        results: the folder of records and predictions.
        output: the page; None for `results/report.html`.
        data: where the samples' images are; None finds those of the embedded scenes.
        features: show patch features, for which the encoders are loaded.
        samples: at most so many samples per task.
        quiet: print warnings only.

    Raises:
        MissingDependencyError: the extra `report` is not installed.
        RecordError: there are no records, or one is damaged.
    """
    from encoder_bench.results.thumbnails import sample_pictures
    from encoder_bench.results.verdict import verdict_sentences

    with needs_extra("report", "report"):
        from encoder_bench.results.report.page import write_report
    folder, reporter = with_home(results), make_reporter(quiet=quiet)
    records = read_records(folder)
    pictures = sample_pictures(data, records)
    seen = {}
    if features:
        from encoder_bench.inspection.features import seen_features

        seen = seen_features(folder, records, pictures, reporter)
    return write_report(
        folder,
        output=None if output is None else with_home(output),
        images=pictures,
        features=seen,
        samples_per_task=samples,
        verdict=verdict_sentences(folder, records),
    )


@_alone
def predict(
    encoders: Sequence[str],
    *,
    data: str = "scenes",
    llm: str = "tiny-llama",
    reference: str | None = None,
    limit: int = 256,
    weights: Mapping[str, Path] | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> list[Forecast]:
    """Return scores of frozen features that papers propose for choosing without training.

    Args:
        encoders: names, in the order of the result.
        data: `scenes`, or a folder with COCO instances and, for some scores, captions.
        llm: whose text features the GW distance compares with.
        reference: encoder of the A-score; None for the first that was trained with text.
        limit: at most so many training and so many test images.
        weights: encoders' checkpoints on disk, by name.
        device: `auto` or a torch device.
        trust_remote_code: let a Hub repository run its own Python code.
        quiet: print warnings only.

    Raises:
        EncoderBenchError: bad input.
    """
    from encoder_bench.base.hardware import choose_device
    from encoder_bench.data.folder import open_data
    from encoder_bench.encoders.registry import load_encoder
    from encoder_bench.inspection import predict as predictors
    from encoder_bench.inspection.labelled_images import read_labelled, read_material
    from encoder_bench.mllm.loading import load_language_model

    reporter, places = make_reporter(quiet=quiet), weights or {}
    labelled = read_labelled(data, reporter, limit=limit)
    material = read_material(open_data(data, reporter), labelled)
    language = load_language_model(LanguageModelSettings(name=llm))
    texts = [material.captions[path] for path in material.described]
    return predictors.forecast_all(
        list(dict.fromkeys(encoders)),
        lambda name: load_encoder(
            name, weights=places.get(name), trust_remote_code=trust_remote_code
        ),
        material,
        texts=predictors.text_features(language, texts) if len(texts) > 1 else None,
        reference=reference,
        device=choose_device(device),
        reporter=reporter,
    )


def _record(run: str | RunRecord, results: Path) -> RunRecord:
    from encoder_bench.results.runs import find_run

    return run if isinstance(run, RunRecord) else find_run(results, run)
