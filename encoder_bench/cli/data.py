"""`encoder-bench data`: look at a data folder before a run does."""

import json
from pathlib import Path
from typing import Annotated

import typer

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.progress import make_reporter
from encoder_bench.cli import mixtures, options
from encoder_bench.data.hub import Kind, Part, import_dataset

app = options.group("Fetch, import, make, check or lint data.")
app.command("preview")(mixtures.preview_command)


@app.command("check")
def check_command(
    data: Annotated[str, typer.Argument(metavar="scenes|coco|DIR|MIXTURE")] = "scenes",
    images: Annotated[
        bool, typer.Option("--images", help="Also decode every image; takes minutes on large sets.")
    ] = False,
    tasks: mixtures.FolderTasks = None,
    train_data: mixtures.TrainingFolder = Path(),
    test_data: mixtures.TestData = None,
    llm: mixtures.Tokenizer = None,
    debug: options.Debug = False,
) -> None:
    """Read the tasks' training and test samples; count missing images; exit 1 on a problem.

    Of a mixture (its recipe's name or file): sources, rows, images, turns, what is skipped and why,
    and the rows that show an image of a test set.
    """
    from encoder_bench.data.folder import open_data
    from encoder_bench.data.lint import PROBLEM, check_folder

    reporter = make_reporter(quiet=False)
    if mixtures.is_mixture(data):
        mixtures.check(data, train_data, test_data, llm, reporter)
        return
    folder = open_data(data, reporter, images_required=False)
    problems = 0
    for line in check_folder(
        folder, options.task_recipes(folder, tasks), decode=images, reporter=reporter
    ):
        typer.echo(line)
        problems += line.startswith(PROBLEM)
    if problems:
        raise EncoderBenchError(f"{folder.root}: {problems} problems, listed above")


@app.command("lint")
def lint_command(
    data: Annotated[str, typer.Argument(metavar="scenes|coco|DIR")] = "scenes",
    tasks: mixtures.FolderTasks = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Also compare training with test images.")
    ] = True,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Look for flaws of the data: answers in the questions, skewed answers, duplicates, overlap.

    Exit 1 if any is found. A table's blind baselines show how much they matter.
    """
    from encoder_bench.data.folder import open_data
    from encoder_bench.data.lint import lint_folder

    reporter = make_reporter(quiet=json_output)
    folder = open_data(data, reporter, images_required=False)
    recipes = options.task_recipes(folder, tasks)
    findings, skipped = lint_folder(folder, recipes, compare=images, reporter=reporter)
    if json_output:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            typer.echo(f"{finding.kind:<15} {finding.task:<11} {finding.message}")
        for line in skipped:
            typer.echo(f"skipped        {line}")
        typer.echo(f"{len(findings)} finding" + "s" * (len(findings) != 1))
    if findings:
        raise typer.Exit(1)


@app.command("fetch")
def fetch_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Names from the catalogue.")
    ] = None,
    to: Annotated[Path, typer.Option(metavar="DIR", help="The data folder.")] = Path("data"),
    list_all: Annotated[bool, typer.Option("--list", help="List the catalogue and stop.")] = False,
    drop_archives: Annotated[
        bool, typer.Option("--drop-archives", help="Remove each archive once it is unpacked.")
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fetch data sets by name; hashes are checked, and an interrupted download resumes.

    Without a network it says which file to put where; the same command then checks and unpacks it.
    """
    from encoder_bench.data.fetch import catalog, fetch

    if list_all or not names:
        for name, entry in catalog().items():
            size = "" if entry.size is None else f"{entry.size / 2**30:.1f} GiB"
            typer.echo(f"{name:<18} {size:>9}  {entry.pinning:<22} {entry.description}")
        return
    for name in names:
        for line in fetch(name, to, make_reporter(quiet=quiet), keep_archives=not drop_archives):
            typer.echo(line)


@app.command("questions")
def questions_command(
    instances: Annotated[
        Path, typer.Argument(metavar="FILE", help="A COCO-format instances file.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="DIR", help="The data folder, which holds the images.")
    ],
    number: Annotated[
        int,
        typer.Option("--questions", min=1, help="At least so many of each kind, where possible."),
    ] = 10_000,
    image_folder: Annotated[
        str,
        typer.Option(metavar="NAME", help="Where in DIR the images are, if not named by COCO id."),
    ] = "",
    seed: Annotated[int, typer.Option(help="Random seed of the choice of images.")] = 0,
    debug: options.Debug = False,
) -> None:
    """Make balanced counting (OC) and identification (MCI) questions from an instances file.

    Within a category every answer is right equally often, and counts start at zero.
    `run --tasks oc,mci --data DIR` asks them.
    """
    from encoder_bench.data.questions import write_questions

    made = write_questions(instances, output, questions=number, seed=seed, images=image_folder)
    for name, (rows, constant, majority) in made.items():
        images = len({row["image_id"] for row in rows})
        typer.echo(
            f"{output / 'gvtbench' / name}.json: {len(rows)} questions on {images} images; "
            f"knowing the answers, the best constant scores {constant:.1f}%, "
            f"the majority by question {majority:.1f}%"
        )


@app.command("import")
def import_command(
    source: Annotated[str, typer.Argument(help="A Hub id, or a folder of Dataset.save_to_disk.")],
    output: Annotated[Path, typer.Argument(metavar="DIR", help="The data folder to write into.")],
    kind: Annotated[Kind, typer.Option(metavar="vqav2|captions", help="What the columns hold.")],
    split: Annotated[str, typer.Option(help="The split to read, by its own name.")] = "validation",
    part: Annotated[Part, typer.Option(metavar="train|val", help="The split to write.")] = "val",
    revision: Annotated[str | None, typer.Option(help="Of the Hub repository.")] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read row by row; the set is not kept twice.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Write a Hub data set to a folder in the official layout, through `datasets`."""
    count = import_dataset(
        source,
        output,
        kind=kind,
        split=split,
        part=part,
        revision=revision,
        streaming=streaming,
        reporter=make_reporter(quiet=False),
    )
    typer.echo(f"wrote {count} rows to {output}")
