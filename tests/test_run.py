"""The whole road on a small drawn data set: one record, the same scores, proof, resume."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder_bench.base.errors import (
    DataError,
    EncoderBenchError,
    RecipeError,
    RecordError,
    TrainingError,
    WeightsError,
)
from encoder_bench.base.paths import cache_dir, list_features
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_adapter
from encoder_bench.base.record import read_record, read_records
from encoder_bench.data.folder import DataFolder
from encoder_bench.data.images import load_image
from encoder_bench.data.scenes.build import SceneSizes, write_scenes
from encoder_bench.pipeline.build import build_mllm, load_run
from encoder_bench.pipeline.data import read_data
from encoder_bench.pipeline.plan import RunPlan, check_places, make_plan
from encoder_bench.pipeline.predictor import ImagePredictor
from encoder_bench.pipeline.run import check_precision, run
from encoder_bench.results.compare import differing_settings
from encoder_bench.results.grouping import group_records
from encoder_bench.tasks.controls import MEAN_IMAGE
from tests.in_process import ForkedPython
from tests.mllm.models import byte_tokenizer, seeded_llama

DATA = "scenes:5:24:2:6"
FLAGS = ["--data", DATA, "--steps", "4", "--device", "cpu", "--seed", "3"]
SETTINGS = {"training.checkpoint_every": 1}


def plan(results: Path, **options: object) -> RunPlan:
    settings = {"data": DATA, "steps": 4, "device": "cpu", "seed": 3, "settings": SETTINGS}
    return make_plan(results=results, **{**settings, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("frozen")
    run(plan(results), QuietReporter())
    return results


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("joint")
    run(plan(results, joint=True, tasks=["oc"]), QuietReporter())
    return results


def test_a_frozen_run_leaves_a_whole_record(frozen: Path) -> None:
    (record,) = read_records(frozen)
    assert not record.joint
    assert set(record.tasks) == {"vqa", "captioning", "oc", "mci"}
    for name, scores in record.tasks.items():
        own = scores.metrics[scores.primary]
        assert own.value is not None
        assert own.samples > 0
        assert {"no-image", "mean-image"} <= set(scores.controls)
        lines = (frozen / "predictions" / record.run_id / f"{name}.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["control"] is None for line in lines) == own.samples
    parts = record.proof.parts
    assert parts["encoder"].trainable_parameters == 0
    assert parts["encoder"].sha256_before == parts["encoder"].sha256_after
    assert parts["projector"].relative_change > 0
    assert record.proof.reload_max_difference == 0.0
    assert record.versions["torch"]
    assert record.seconds["training"] > 0
    assert record.peak_memory_bytes["resident"] > 2**20
    assert len(record.training["losses"]) == 4 * len(load_adapter("quick").stages)


def test_a_joint_run_moves_the_encoder(joint: Path) -> None:
    (record,) = read_records(joint)
    encoder = record.proof.parts["encoder"]
    assert encoder.should_train
    assert encoder.relative_change > 0
    assert encoder.sha256_before != encoder.sha256_after
    assert encoder.first_gradient_norm
    assert encoder.last_gradient_norm


def test_what_training_alone_misses_says_that_training_wants_it(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    (folder / "gvtbench").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "images" / "000000000001.jpg")
    row = {"image_id": 1, "text_in": "How many cats?", "text_out": "1", "n_obj_exist": 1}
    (folder / "gvtbench" / "coco_oc.json").write_text(json.dumps([row]))
    wanted = plan(tmp_path, data=str(folder), tasks=["oc"])
    with pytest.raises(DataError, match=r"photos: no .*; the adapter trains on \w+ too, whatever"):
        read_data(wanted, QuietReporter())


def test_every_seed_is_tested_on_the_same_samples(tmp_path: Path) -> None:
    drawn = [
        [sample.sample_id for task in data.test.values() for sample in task.samples]
        for seed in (0, 1)
        for data in [read_data(plan(tmp_path, seed=seed, limit=5), QuietReporter())]
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 20


def test_the_mean_image_is_the_mean_of_the_training_features(tmp_path: Path) -> None:
    model = build_mllm(plan(tmp_path)).eval()
    paths = [tmp_path / f"{shade}.png" for shade in (0, 40, 250)]
    for path in paths:
        Image.new("RGB", (64, 64), (int(path.stem), 90, 90)).save(path)
    pixels = model.encoder.pixels(map(load_image, paths))
    with torch.inference_mode():
        features = model.features(pixels)
        expected = model.visual_tokens(features.mean(dim=0, keepdim=True))
        predictor = ImagePredictor(model, training=[*paths, paths[0]])
        found = predictor._visual_tokens([MEAN_IMAGE])
        kept = dict(zip(paths, features, strict=True))
        cached = ImagePredictor(model, kept, training=paths)._visual_tokens([MEAN_IMAGE])
    torch.testing.assert_close(found, list(expected))
    torch.testing.assert_close(cached, list(expected))


def test_random_weights_are_said_to_be_random(frozen: Path) -> None:
    (record,) = read_records(frozen)
    if record.encoder.pretrained:
        pytest.skip("the tiny encoders' weights ship with this checkout")
    assert any("random weights" in line for line in record.warnings)


def test_the_same_run_is_found_and_force_repeats_it_bit_for_bit(frozen: Path) -> None:
    before = read_records(frozen)[0]
    found = run(plan(frozen), QuietReporter())
    assert found.found
    assert found.record == before
    again = run(plan(frozen), QuietReporter(), force=True)
    assert not again.found
    assert again.record.tasks == before.tasks
    assert again.record.proof == before.proof


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"limit": 2}, {"steps": 5}, {"projector": "linear"}, {"joint": True}],
    ids=str,
)
def test_what_changes_a_score_changes_the_identity(frozen: Path, change: dict[str, object]) -> None:
    base, other = plan(frozen).scoring_settings(), plan(frozen, **change).scoring_settings()
    assert base != other


def test_another_chat_template_is_another_run_and_stands_in_another_table(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    seeded_llama(tokenizer).save_pretrained(tmp_path / "llm")
    chat = SETTINGS | {"llm.chat_template": True}
    records = []
    for greeting in ("Hello.", "Good day."):
        tokenizer.chat_template = greeting + "{% for m in messages %}[{{ m.content }}]{% endfor %}"
        tokenizer.save_pretrained(tmp_path / "llm")
        settings = {"llm": str(tmp_path / "llm"), "steps": 1, "settings": chat}
        wanted = plan(tmp_path, tasks=["oc"], controls="none", **settings)
        records.append(run(wanted, QuietReporter()).record)
    heads = [record.language_model.template["head"] for record in records]
    assert heads == ["Hello.[", "Good day.["]
    assert records[0].run_id != records[1].run_id
    assert "EXIF" in records[0].image_loading
    assert len({table.heading for table in group_records(records)}) == 2
    assert differing_settings(*records) == ("chat template",)
    with pytest.raises(WeightsError, match="llm: its chat template is not that of run"):
        load_run(tmp_path, records[0])


def test_controls_are_chosen_without_a_change_of_scores(frozen: Path, tmp_path: Path) -> None:
    cheap = plan(tmp_path, controls="cheap")
    assert all("shuffled-images" not in recipe.controls for recipe in cheap.tasks.values())
    assert any("mean-image" in recipe.controls for recipe in cheap.tasks.values())
    none = run(plan(tmp_path, controls="none"), QuietReporter()).record
    (whole,) = read_records(frozen)
    assert none.run_id != whole.run_id  # or its baselines would be taken for those of the whole run
    assert not any(scores.controls for scores in none.tasks.values())
    assert {n: s.metrics for n, s in none.tasks.items()} == {
        n: s.metrics for n, s in whole.tasks.items()
    }
    assert len(group_records([none, whole])) == 1
    with pytest.raises(RecipeError, match="'controls'"):
        plan(tmp_path, controls="some")


def test_the_feature_cache_changes_no_score(frozen: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "training.feature_cache": False}
    uncached = run(plan(tmp_path, settings=settings), QuietReporter()).record
    cached = read_records(frozen)[0]
    assert uncached.run_id == cached.run_id
    assert uncached.tasks == cached.tasks


def test_a_killed_run_goes_on_and_ends_with_the_same_scores(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, own = cache_dir("scenes"), tmp_path / "cache"
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(own))
    own.mkdir()
    (own / "scenes").symlink_to(drawn)  # features are its own, and half written when it is killed
    command = [sys.executable, "-m", "encoder_bench", "run", *FLAGS, "--results", str(tmp_path)]
    command += ["--set", "training.checkpoint_every=1", "--quiet"]
    process = ForkedPython(command)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("checkpoints/*/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert list(tmp_path.glob("checkpoints/*/*")), "killed before the first checkpoint"
    (entry,) = list_features()
    assert entry.items < 30
    assert not read_records(tmp_path)
    record = run(plan(tmp_path), QuietReporter()).record
    expected = read_records(frozen)[0]
    assert record.run_id == expected.run_id
    assert record.tasks == expected.tasks
    assert record.proof.parts["projector"].sha256_after == (
        expected.proof.parts["projector"].sha256_after
    )


def test_an_edited_record_is_refused(joint: Path, tmp_path: Path) -> None:
    source = next((joint / "records").glob("*.json"))
    edited = tmp_path / source.name
    edited.write_text(source.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(RecordError, match="edited or damaged"):
        read_record(edited)


def test_two_processes_do_not_do_the_same_run_at_once(tmp_path: Path, frozen: Path) -> None:
    from filelock import FileLock

    identity = read_records(frozen)[0].run_id
    folder = tmp_path / "checkpoints" / identity
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(EncoderBenchError, match="another process"):
        run(plan(tmp_path), QuietReporter())


def test_plans_refuse_what_cannot_be() -> None:
    results = Path("unused")
    with pytest.raises(RecipeError, match="twice"):
        plan(results, tasks=["vqa", "vqa"])
    with pytest.raises(RecipeError, match="--limit 0"):
        plan(results, limit=0)
    with pytest.raises(DataError, match="--data"):
        run(plan(results, data="/nowhere/at/all"), QuietReporter())


def test_a_task_that_cannot_be_scored_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Path("tasks/oc.toml").read_text()
    (tmp_path / "bare.toml").write_text(re.sub(r'"\w+@likelihood",? ?', "", recipe))
    with pytest.raises(RecipeError, match="'bare': a metric that ends in @likelihood"):
        plan(tmp_path, tasks=[str(tmp_path / "bare.toml")])
    repeated = plan(tmp_path, tasks=["oc"])
    whole = DataFolder.samples
    monkeypatch.setattr(
        DataFolder,
        "samples",
        lambda *arguments, **options: whole(*arguments, **options).take(np.zeros(2)),
    )
    with pytest.raises(DataError, match="occurs twice"):
        read_data(repeated, QuietReporter())


def test_an_estimate_says_where_float32_is_the_faster_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from encoder_bench.pipeline import estimate

    rates = {"float32": 3e11, "bfloat16": 2e11}
    monkeypatch.setattr(estimate, "_cpu_flops", lambda precision: rates[precision])
    rounded = {"training.precision": "bfloat16"}
    found = estimate.estimate_run(plan(Path("unused"), settings=rounded))
    assert found.float32_rate == 1.5
    assert "1.5 times as fast in float32 as in bfloat16" in "\n".join(found.lines())
    rates["bfloat16"] = 6e11
    lines = estimate.estimate_run(plan(Path("unused"), settings=rounded)).lines()
    assert "float32" not in "\n".join(lines)
    exact = {"training.precision": "float32"}
    assert estimate.estimate_run(plan(Path("unused"), settings=exact)).float32_rate is None


def test_an_estimate_counts_what_trains_and_what_is_asked(frozen: Path) -> None:
    from encoder_bench.pipeline.estimate import estimate_run

    small, large = (estimate_run(plan(Path("unused"), joint=flag)) for flag in (False, True))
    assert small.training_flops is not None
    assert large.training_flops is not None
    assert large.training_flops > small.training_flops
    assert small.memory_bytes is not None
    assert large.memory_bytes is not None
    assert large.memory_bytes > small.memory_bytes
    assert (small.encoded_images, large.encoded_images, large.feature_bytes) == (30, 0, 0)
    few = estimate_run(plan(Path("unused"), steps=1))
    assert few.encoded_images == 8 * len(load_adapter("quick").stages) + 6
    half = estimate_run(plan(Path("unused"), settings={"training.feature_storage": "float16"}))
    assert small.feature_bytes == 2 * (half.feature_bytes or 0) > 0
    assert any("at most 30 images to encode" in line for line in small.lines())
    counted = estimate_run(plan(Path("unused"))).test_samples
    recorded = read_records(frozen)[0].tasks.values()
    assert counted == sum(scores.metrics[scores.primary].samples for scores in recorded)
    one, many = (estimate_run(plan(Path("unused"), limit=limit)) for limit in (2, None))
    assert one.task_seconds is not None
    assert many.task_seconds is not None
    assert many.task_seconds > one.task_seconds
    assert one.seconds == pytest.approx((one.training_seconds or 0) + one.task_seconds)
    assert one.test_samples == 2 * len(plan(Path("unused")).tasks)
    unreadable = estimate_run(plan(Path("unused"), data="/nowhere"))
    assert unreadable.seconds is None
    assert any("/nowhere" in line for line in unreadable.lines())
    unknown = estimate_run(plan(Path("unused"), adapter="gvt", steps=10))
    assert unknown.seconds is None
    assert any("vicuna" in line for line in unknown.lines())


def test_training_shares_no_image_with_what_a_limit_leaves_out(tmp_path: Path) -> None:
    """The trained model may be asked the rest of the test set later."""
    tested, taught = tmp_path / "tested", tmp_path / "taught"
    write_scenes(tested, SceneSizes(seed=3, train=30, val=5, test=20), QuietReporter())
    last = json.loads((tested / "gvtbench" / "coco_oc.json").read_text())[-1]["image_id"]
    # the same folder, in which this image is one to train on
    train = "coco/annotations/instances_train2017.json"
    shown = json.loads((tested / train).read_text())
    val = json.loads((tested / train.replace("train", "val")).read_text())
    (image,) = (row for row in val["images"] if row["id"] == last)
    shown["images"].append(image)
    shown["annotations"] += [row for row in val["annotations"] if row["image_id"] == last]
    shutil.copytree(tested, taught)
    for file in taught.rglob("*.json"):
        content = json.loads(file.read_text())
        for rows in content.values() if isinstance(content, dict) else [content]:
            if isinstance(rows, list):
                names = ("image_id", "cocoid", "id")
                rows[:] = [r for r in rows if last not in [r.get(name) for name in names]]
        file.write_text(json.dumps(content))
    (taught / train).write_text(json.dumps(shown))
    shutil.move(taught / "coco" / "val2017" / image["file_name"], taught / "coco" / "train2017")
    chosen = plan(
        Path("unused"), data=str(tested), training_data=str(taught), tasks=["oc"], limit=1
    )
    with pytest.raises(DataError, match=f"share 1 images, the first {last}"):
        read_data(chosen, QuietReporter())


def test_a_folder_whose_name_begins_with_scenes_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoder_bench.pipeline.estimate import estimate_run

    (tmp_path / "scenes_of_mine").mkdir()
    monkeypatch.chdir(tmp_path)
    own = plan(Path("unused"), data="scenes_of_mine")
    check_places(own)
    assert not any("give scenes" in reason for reason in estimate_run(own).unknown)
    with pytest.raises(DataError, match="--data scenes_of_yours: no such folder"):
        check_places(plan(Path("unused"), data="scenes_of_yours"))
    source = '[[sources]]\nname = "a"\nformat = "folder"\npath = "scenes_of_yours"\ntasks = ["oc"]'
    (tmp_path / "mine.toml").write_text(f'description = "one"\n{source}\n')
    mixed = plan(Path("unused"), training_data=str(tmp_path), mixture=[str(tmp_path / "mine.toml")])
    with pytest.raises(DataError, match=r"source 'a': path .*scenes_of_yours: no such folder"):
        check_places(mixed)


@pytest.mark.parametrize(
    ("encoder", "layer", "wrong"),
    [
        ("convnext-b", (-2,), "hierarchical.*pass --layer -1"),
        ("random:swin-t", (-2,), "hierarchical.*pass --layer -1"),
        ("dinov2-s", (12,), "--layer 12 is none of its 12 blocks"),
        ("convnext-b", (-1,), None),
        ("dinov2-s", (11, -12), None),
        ("dinov2-s+clip-b", (-2,), None),
        ("timm:resnet18", (-2,), None),  # nothing is known of it before it is built
    ],
)
def test_a_layer_that_the_catalogue_rules_out_is_refused_before_anything_is_loaded(
    encoder: str, layer: tuple[int, ...], wrong: str | None, tmp_path: Path
) -> None:
    made = plan(tmp_path, encoder=encoder, settings={"encoder.layer": list(layer)})
    if wrong is None:
        check_places(made)
    else:
        with pytest.raises(WeightsError, match=wrong):
            check_places(made)


def test_an_estimate_counts_what_a_folder_asks(tmp_path: Path) -> None:
    """A blind baseline answers a question once, on however many images it is asked."""
    from encoder_bench.data.folder import open_data
    from encoder_bench.pipeline.estimate import estimate_run

    root = str(open_data("scenes:6:24:2:8").root)
    one, two = (
        estimate_run(plan(tmp_path, data=root, tasks=["mci"], settings={"controls": controls}))
        for controls in ("none", "all")
    )
    assert one.task_seconds is not None
    assert two.task_seconds is not None
    assert one.test_samples == two.test_samples
    assert one.task_seconds < two.task_seconds < 3.5 * one.task_seconds

    def flops(samples_per_image: int) -> float | None:
        made = plan(tmp_path, data=root)
        wide = {"samples_per_image": samples_per_image}
        stages = tuple(stage.model_copy(update=wide) for stage in made.adapter.stages)
        adapter = made.adapter.model_copy(update={"stages": stages})
        return estimate_run(replace(made, adapter=adapter)).training_flops

    assert flops(1000) == flops(2000)  # no image has so many questions
    assert (flops(1) or 0) < (flops(2) or 0)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("timm:test_vit", False), ("random:timm:test_vit", False), ("dir", False), ("dir", True)],
)
def test_an_estimate_counts_encoders_that_the_catalogue_lacks(
    name: str, weights: bool, tmp_path: Path
) -> None:
    from encoder_bench.pipeline.estimate import estimate_run

    folder = Path(__file__).parents[1] / "encoder_bench/bundled/encoders/tiny-dino"
    chosen = f"dir:{folder}" if name == "dir" else name
    found = estimate_run(plan(tmp_path, encoder=chosen, weights=folder if weights else None))
    assert found.seconds is not None
    assert found.memory_bytes is not None
    assert (found.feature_bytes or 0) > 0


def test_an_estimate_without_memory_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameter count of the packaged model is known without its configuration."""
    from encoder_bench.pipeline import estimate

    monkeypatch.setattr(estimate, "_memory", lambda *_, **__: None)
    found = estimate.estimate_run(plan(Path("unused"), adapter="laptop", limit=2))
    assert found.memory_bytes is None
    assert found.training_flops is not None
    assert any("configuration of smollm2-135m" in line for line in found.lines())


@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("own", [False, True], ids=["emulated", "own"])
@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("projector.name", "mlp", False),
        ("projector.name", "c-abstractor", True),
        ("encoder.dtype", "bfloat16", True),
    ],
)
def test_a_gpu_without_bfloat16_is_said(
    joint: bool,
    precision: str,
    own: bool,
    key: str,
    value: str,
    refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_a_gpu(including_emulation: bool = True) -> bool:
        return own or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", of_a_gpu)
    warned: list[str] = []
    reporter = QuietReporter()
    monkeypatch.setattr(reporter, "warn", warned.append)
    settings = {"training.precision": precision, key: value}
    if joint and key == "encoder.dtype":
        with pytest.raises(RecipeError, match=r"weights that train are in float32"):
            plan(tmp_path, joint=joint, settings=settings)
        return
    chosen = plan(tmp_path, joint=joint, settings=settings)
    mllm = build_mllm(chosen)
    check_precision(chosen, mllm, torch.device("cpu"), reporter)
    needed = "training.precision" if precision == "bfloat16" and (joint or refused) else None
    needed = "encoder.dtype" if value == "bfloat16" else needed
    if needed and not own:
        with pytest.raises(TrainingError, match=f"--set {needed}=float"):
            check_precision(chosen, mllm, torch.device("cuda"), reporter)
    else:
        check_precision(chosen, mllm, torch.device("cuda"), reporter)
        assert len(warned) == (precision == "bfloat16" and not own)
