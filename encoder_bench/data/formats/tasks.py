"""Training samples of tasks, from folders in the official layouts and from drawn scenes.

Each becomes a conversation of one turn, by the prompt and the answer of its task's recipe.
"""

import os
from pathlib import Path

from encoder_bench.base.progress import Reporter
from encoder_bench.base.recipes import SourceSettings, TaskRecipe, load_task
from encoder_bench.data.folder import DataFolder, open_data
from encoder_bench.data.formats.row import Parsed, Place, RawRow, RawRows, conversation


def locate(source: SourceSettings, root: Path, reporter: Reporter) -> Place:
    """Return the place of a folder, `coco` or `scenes`, as `--data` names them."""
    folder = open_folder(source, root, reporter)
    recipes = {task: load_task(task).scoring() for task in source.tasks}
    identity = repr((folder.fingerprint(), recipes))
    return Place(source, root, (), folder.root.resolve(), trusted=True, identity=identity)


def open_folder(source: SourceSettings, root: Path, reporter: Reporter) -> DataFolder:
    """Return the data folder that a source's path names, scenes drawn where they are not yet."""
    name = str(source.path)
    own = name == "coco" or name.partition(":")[0] == "scenes"
    return open_data(
        name if own else str(root / Path(name).expanduser()),
        reporter,
        images_required=False,
        flag=f"source '{source.name}': path",
    )


def rows(place: Place) -> RawRows:
    """Yield the training samples of each task, asked and answered as its recipe says.

    Raises:
        DataError: files are missing or malformed, or there are no training samples.
    """
    folder = DataFolder(place.images.name, place.images, images_required=False)
    number = 0
    for task in place.source.tasks:
        recipe: TaskRecipe = load_task(task)
        for sample in folder.task_samples(task, recipe, "train"):
            turn = {
                "user": recipe.fill_prompt(sample.question),
                "assistant": recipe.fill_answer(sample.target),
                "image": os.path.relpath(sample.image_path, place.images),
            }
            yield RawRow(task, number, turn)
            number += 1


def parse(content: object, place: Place) -> Parsed:
    """Return a sample as a conversation of one turn."""
    assert isinstance(content, dict)
    messages = [("user", content["user"]), ("assistant", content["assistant"])]
    return conversation(messages, [content["image"]])
