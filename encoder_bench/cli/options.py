"""Every option that more than one command takes, declared once, and how its text is read."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from encoder_bench.base.errors import RecipeError
from encoder_bench.base.paths import RESULTS as RESULTS
from encoder_bench.base.paths import with_home
from encoder_bench.base.recipes import TaskRecipe, load_task
from encoder_bench.encoders.registry import find_spec
from encoder_bench.pipeline import plan

if TYPE_CHECKING:
    from encoder_bench.data.folder import DataFolder

debug = os.environ.get("ENCODER_BENCH_DEBUG", "") not in ("", "0")
"""Whether errors show their traceback; `--debug` on any command sets it."""

DEFAULT_TASKS = ",".join(plan.DEFAULT_TASKS)
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
what, how, where, output = (
    partial(typer.Option, rich_help_panel=panel)
    for panel in ("What to compare", "How to train", "Where", "Output")
)
"""Options of each panel of a command's help."""


def _set_debug(value: bool) -> bool:
    global debug
    debug = debug or value
    return value


# What to compare
Encoder = Annotated[
    str,
    what(
        "--encoder",
        "-e",
        metavar="NAME",
        help="A name of `encoder-bench encoders`, timm:NAME, open_clip:ARCH/PRETRAINED, "
        r"hf:REPO\[@REV], dir:PATH, or two joined by +.",
    ),
]


def _encoder_names(texts: list[str]) -> list[str]:
    """Return each name of `A,B` texts; a folder whose own name holds commas is one.

    Raises:
        RecipeError: no name.
        UnknownNameError: no such encoder.
    """
    found = []
    for text in texts:
        folder = with_home(text.removeprefix("dir:"))
        found += [text] if text.startswith("dir:") and folder.exists() else listed(text)
    if not found:
        raise RecipeError("--encoders is empty; name at least one")
    for name in found:  # before anything is computed for those that are right
        find_spec(name)
    return found


Encoders = Annotated[
    list[str],
    what(
        "--encoders",
        "-e",
        metavar="NAME,...",
        callback=_encoder_names,
        help="Encoders, as `run --encoder` takes them; also repeatable.",
    ),
]
Adapter = Annotated[
    str,
    what(
        metavar="NAME|FILE.toml",
        help="Adapter recipe (quick, laptop, gvt, llava, prismatic, or your own): projector, LLM, "
        "what trains and how.",
    ),
]
Tasks = Annotated[str, what(metavar="NAME,...", help="Task recipes: names or files.")]
JointTune = Annotated[bool, what("--joint-tune", help="Tune the encoder too; else frozen.")]
Seed = Annotated[int, what(help="Random seed of initialisation, data order and bootstrap.")]

# Where
Data = Annotated[
    str,
    where(
        metavar="scenes|coco|DIR",
        help="Test data: the embedded scenes, $COCO, or a folder in the official layouts.",
    ),
]
TrainData = Annotated[
    str | None, where(metavar="scenes|coco|DIR", help="Training data, if not --data.")
]
Mixture = Annotated[
    str | None,
    where(
        metavar="NAME|FILE.toml|none[,...]",
        help="What to train on, with paths relative to --train-data: one mixture recipe for all "
        "stages or one for each; none: the tasks' own training samples.",
    ),
]
Limit = Annotated[
    int | None,
    where(metavar="N", help="Score at most N samples per task, the same for every seed."),
]
Controls = Annotated[
    str | None,
    where(
        metavar="none|cheap|all",
        help="Blind baselines: all (the recipe's default), none, or cheap: all but shuffled "
        "images, which cost another pass over every sample.",
    ),
]
Weights = Annotated[
    Path | None, where(metavar="PATH", help="The encoder's checkpoint on disk, instead of the Hub.")
]
WeightsByName = Annotated[
    list[str] | None,
    where(
        metavar="[NAME=]PATH",
        help="The encoder's checkpoint on disk, instead of the Hub; NAME= with several.",
    ),
]
Device = Annotated[str, where(help="auto, cpu, cuda, cuda:1, mps.")]
CacheLimit = Annotated[
    float | None,
    where(
        metavar="GIB",
        help="The most this run may add to the feature cache; 80% of the free disk by default.",
    ),
]
Pictures = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="scenes|DIR",
        help="Where the images are; the embedded scenes are found without it.",
    ),
]
Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help=r"A run: its id, the start of it, or ENCODER/MODE\[/SEED]."),
]

# How to train
Projector = Annotated[str | None, how(metavar="NAME", help="projector.name")]
VisualTokens = Annotated[
    int | None,
    how(
        metavar="N",
        help="projector.visual_tokens: the same number for every encoder, so that the comparison "
        "is fair across patch sizes.",
    ),
]
LanguageModel = Annotated[
    str | None,
    how(
        metavar="NAME|PATH",
        help="llm.name: tiny-llama, smollm2-135m, a Hub id, a folder, a .gguf file.",
    ),
]
TrainLanguageModel = Annotated[str | None, how(metavar="frozen|lora|full", help="llm.train")]
Layer = Annotated[
    str | None,
    how(
        metavar="L[,L]",
        help="encoder.layer: which blocks' tokens; -1 the last, -2 as in LLaVA; several are "
        "joined along channels.",
    ),
]
Resolution = Annotated[int | None, how(metavar="PIXELS", help="encoder.resolution")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], how(help="Of the weights.")]
Steps = Annotated[int | None, how(metavar="N", min=1, help="Optimizer steps of each stage.")]
Set = Annotated[
    list[str] | None,
    how(
        "--set",
        metavar="KEY=VALUE",
        help="Any other key of the adapter recipe; the value is TOML; repeatable.",
    ),
]
TrustRemoteCode = Annotated[
    bool, how("--trust-remote-code", help="Let a Hub repository run its own Python code; recorded.")
]

# Output
Trackers = Annotated[
    str | None,
    output(
        metavar="tensorboard,wandb,...",
        help="Experiment trackers to log to, by accelerate's names.",
    ),
]
Results = Annotated[
    Path, output("--results", metavar="DIR", help="Folder of records, predictions and checkpoints.")
]
DryRun = Annotated[
    bool,
    output("--dry-run", help="Print the plan and its estimated time, memory and disk; do nothing."),
]
Force = Annotated[bool, output("--force", help="Run again even if done.")]
Quiet = Annotated[bool, output("--quiet", "-q", help="No progress, warnings only.")]
Json = Annotated[bool, output("--json", help="Print the result as JSON on standard output.")]
Debug = Annotated[
    bool,
    output(
        "--debug",
        callback=_set_debug,
        is_eager=True,
        help="Show the traceback of an error (also ENCODER_BENCH_DEBUG=1).",
    ),
]


def group(about: str) -> typer.Typer:
    """Return a command that others are under."""
    return typer.Typer(help=about, no_args_is_help=True, context_settings=HELP_NAMES)


def listed(text: str | None) -> list[str]:
    """Read `A,B`: the parts without blanks, none for None.

    >>> listed("vqa, oc,")
    ['vqa', 'oc']
    """
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def task_recipes(folder: DataFolder, names: str | None = None) -> dict[str, TaskRecipe]:
    """Return recipes by name: the named ones, else the default four and VCR's where they are."""
    vcr = [n for n in ("vcr_oc", "vcr_mci") if folder.files.find("gvtbench", f"{n}.json")]
    return {name: load_task(name) for name in listed(names) or [*plan.DEFAULT_TASKS, *vcr]}


def whole_numbers(flag: str, text: str | None) -> list[int]:
    """Read `--seeds 0,1` or `--layer -2,-8`; none for None.

    Raises:
        RecipeError: not whole numbers.
    """
    try:
        return [int(part) for part in listed(text)]
    except ValueError:
        raise RecipeError(f"{flag} {text}: give whole numbers, as in 0,1 or -2,-8") from None


def pairs(flag: str, texts: list[str] | None, example: str) -> dict[str, str]:
    """Read a repeatable `KEY=VALUE`.

    Raises:
        RecipeError: no key, no equals sign, or no value.
    """
    found = {}
    for text in texts or []:
        key, _, value = text.partition("=")
        if not key.strip() or not value.strip():
            raise RecipeError(f"{flag} {text}: give KEY=VALUE, as in {example}")
        found[key.strip()] = value
    return found


def settings(texts: list[str] | None) -> dict[str, Any]:
    """Read `--set KEY=VALUE` options: each value as TOML, or a bare string where it is no TOML.

    Raises:
        RecipeError: no `KEY=VALUE`.
    """
    import tomllib

    found: dict[str, Any] = dict(pairs("--set", texts, "training.precision=bf16"))
    for key, value in found.items():
        with contextlib.suppress(tomllib.TOMLDecodeError):
            found[key] = tomllib.loads(f"value = {value}")["value"]
    return found


def weights_by_name(encoders: list[str], texts: list[str] | None) -> dict[str, Path]:
    """Read `--weights [NAME=]PATH` options; with one encoder, the name may be left out.

    Raises:
        RecipeError: a path without a name where there are several encoders, or another name.
    """
    found: dict[str, Path] = {}
    for text in texts or []:
        name, _, path = text.partition("=")
        if not (name in encoders and path):
            if len(encoders) != 1:
                names = ", ".join(encoders)
                raise RecipeError(f"--weights {text}: give NAME=PATH with one of {names}")
            name, path = encoders[0], text
        if name in found:
            raise RecipeError(f"--weights names {name} twice")
        found[name] = with_home(path)
    return found


def gibibytes(value: float | None) -> int | None:
    """Return GiB as bytes; None stays None."""
    return None if value is None else int(value * 2**30)
