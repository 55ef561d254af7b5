"""What other systems leave: hidden files of macOS and Jupyter, and marks of Windows in texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_adapter, recipe_folder
from encoder_bench.base.record import read_records
from encoder_bench.cli.app import app
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.mixture import open_mixture
from encoder_bench.data.scenes.build import scenes_folder
from encoder_bench.inspection.labelled_images import read_labelled
from encoder_bench.results.runs import find_run
from tests.results.report_builders import make_run

_APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02\x00\x00"
"""How such a file begins: RFC 1740, appendix B, with the filler that macOS writes."""
_QUIET = QuietReporter()


def lay_hidden_files(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            (path / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
        path.with_name(f"._{path.name}").write_bytes(_APPLE_DOUBLE)
    for image in [*root.rglob("[!.]*.png")][:3]:
        copies = image.parent / ".ipynb_checkpoints"
        copies.mkdir(exist_ok=True)
        shutil.copy(image, copies / f"{image.stem}-checkpoint.png")


def test_a_data_folder_is_the_same_with_them(tmp_path: Path) -> None:
    root = tmp_path / "outer" / "data"
    shutil.copytree(scenes_folder("scenes:5:24:2:6", _QUIET), root)

    def read() -> tuple[str, str, list[str]]:
        folder = DataFolder("x", root)
        table = folder.samples("oc", reader="gvtbench", source="coco_oc", split="test")
        return folder.fingerprint(), table.fingerprint, [str(s.image_path) for s in table]

    before = read()
    lay_hidden_files(root)
    assert read() == before


def test_class_folders_are_the_same_with_them(tmp_path: Path) -> None:
    for name, colour in (("blue", 200), ("red", 100)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for shade in range(12):
            Image.new("L", (8, 8), colour + shade).save(tmp_path / "set" / name / f"{shade}.png")
    before = read_labelled(str(tmp_path / "set"), _QUIET)
    lay_hidden_files(tmp_path / "set")
    after = read_labelled(str(tmp_path / "set"), _QUIET)
    assert after.class_names == ("blue", "red")
    assert [i.name for i in after.train] == [i.name for i in before.train]
    assert [i.name for i in after.test] == [i.name for i in before.test]


def test_a_results_folder_is_the_same_with_them(tmp_path: Path) -> None:
    results = tmp_path / "outer" / "results"
    for name in ("deit", "mae"):
        make_run(results, name, joint=False, skill=0.5, count=12, blind={"constant": 0.4})

    def printed() -> list[str]:
        commands = ("table", "recommend", "status"), ("results", "ls")
        calls = [[name] for name in commands[0]] + [list(commands[1])]
        done = [CliRunner().invoke(app, [*call, "--results", str(results)]) for call in calls]
        assert [d.exit_code for d in done] == [0] * len(done), [d.output for d in done]
        return [d.output for d in done]

    before = printed()
    lay_hidden_files(results)
    assert printed() == before
    (first, _) = read_records(results)
    assert find_run(results, first.run_id) == first


def test_texts_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(scenes_folder("scenes:5:24:2:6", _QUIET), root)

    def read() -> list[tuple[str, str]]:
        readers = {"gvtbench": "coco_oc", "vqav2": "vqav2"}
        rows = [DataFolder("x", root).samples("t", reader=reader, source=source, split="test")
                for reader, source in readers.items()]  # fmt: skip
        return [(sample.sample_id, str(sample.question)) for table in rows for sample in table]

    before = read()
    for path in root.rglob("*.json"):
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read() == before
    recipe = tmp_path / "marked.toml"
    shipped = recipe_folder("adapters") / "quick.toml"
    recipe.write_text(shipped.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert load_adapter(str(recipe)) == load_adapter("quick")


def test_a_mixture_is_the_same_with_them(tmp_path: Path) -> None:
    images, rows = tmp_path / "outer" / "images", tmp_path / "outer" / "rows"
    images.mkdir(parents=True)
    rows.mkdir()
    Image.new("RGB", (8, 8)).save(images / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Black."}]
    for name in ("one", "two"):
        row = {"id": name, "image": "a.png", "conversations": turns}
        text, marked = json.dumps(row) + "\n", name == "two"
        (rows / f"{name}.jsonl").write_text(text, "utf-8-sig" if marked else "utf-8")
    recipe = tmp_path / "mix.toml"
    for path in ("rows", "rows/*.jsonl"):
        recipe.write_text(
            f'description = "d"\n[[sources]]\nname = "s"\nformat = "llava"\npath = "{path}"\n'
            'images = "images"\n'
        )
        lay_hidden_files(tmp_path / "outer")
        mixture = open_mixture(str(recipe), tmp_path / "outer", _QUIET)
        assert len(mixture) == 2
        assert not mixture.description()["sources"]["s"]["skipped"]
