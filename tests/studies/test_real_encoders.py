"""Packaged checkpoints in timm's names: the same features as their own libraries compute."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path

import pytest
import timm
import torch
from transformers import Dinov2Config, Dinov2Model

from encoder_bench.base.errors import EncoderBenchError, WeightsError
from encoder_bench.base.progress import QuietReporter
from encoder_bench.base.recipes import load_adapter, load_task, recorded_adapter
from encoder_bench.base.record import read_records
from encoder_bench.data.folder import open_data
from encoder_bench.encoders.registry import load_encoder
from studies.real_encoders import REAL_ENCODERS, convert, from_graph, renamed


def test_the_recipes_of_the_photo_study_are_read() -> None:
    folder = Path(__file__).parents[2] / "studies" / "real"
    stages = load_adapter(str(folder / "real.toml")).stages
    assert [stage.tasks for stage in stages] == [("mci",), ("oc", "mci")]
    tasks = [load_task(str(folder / f"{name}.toml")) for name in stages[-1].tasks]
    assert [task.primary for task in tasks] == ["counting_accuracy", "yesno_accuracy"]


def test_the_committed_records_are_of_these_recipes() -> None:
    root = Path(__file__).parents[2]
    recipe = load_adapter(str(root / "studies" / "real" / "real.toml"))
    frozen = tuple(stage.model_copy(update={"encoder": None}) for stage in recipe.stages)
    records = read_records(root / "results" / "real")
    runs = {(record.encoder.name, record.joint, record.seed) for record in records}
    own = {run for run in runs if not run[0].startswith("random:")}
    assert len(runs) == len(records)
    assert runs - own == {(f"random:{name}", *rest) for name, *rest in own}  # each has its twin
    names = {name for name, *_ in own}
    assert own == {(n, joint, seed) for n in names for joint in (False, True) for seed in range(3)}
    assert len(names) == 3
    for record in records:
        assert record.proof.parts["encoder"].should_train == record.joint
        adapter = recorded_adapter(record.adapter)
        encoder = recipe.encoder.model_copy(update={"trainable": record.joint})
        stages = recipe.stages if record.joint else frozen
        assert adapter == recipe.model_copy(update={"stages": stages, "encoder": encoder})
        for name, task in record.tasks.items():
            own = load_task(str(root / "studies" / "real" / f"{name}.toml"))
            assert task.definition["source"] == own.source


def test_a_graph_of_dinov2_gives_the_features_of_transformers() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Dinov2Config(**shape, image_size=518, patch_size=14, layerscale_value=0.5)
    model = Dinov2Model(config).eval()
    model.embeddings.position_embeddings.data.normal_()
    arrays, nodes = {}, []
    older = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}  # names in the exported graph
    for name, tensor in model.state_dict().items():
        name = name.replace("attention.o_proj", "attention.output.dense")
        for now, then in older.items():
            name = name.replace(f"attention.{now}", f"attention.attention.{then}")
        if name.startswith("encoder.") and tensor.ndim == 2:  # as an exporter folds linear layers
            arrays[f"onnx::MatMul_{len(nodes)}"] = tensor.T
            path = f"/backbone/{name.removesuffix('.weight').replace('.', '/')}/MatMul"
            path = path.replace("layer/", "layer.")
            nodes.append((path, "MatMul", ["x", f"onnx::MatMul_{len(nodes)}"]))
        elif "position_embeddings" in name:
            arrays |= {"a": tensor[:, :1], "b": tensor[:, 1:]}
            nodes.append(("/backbone/embeddings/Reshape_1", "Reshape", ["b", "shape"]))
            nodes.append(("/backbone/embeddings/Concat_6", "Concat", ["a", "y"]))
        elif "mask_token" not in name:
            arrays[f"backbone.{name}"] = tensor
    ours = timm.create_model(
        "vit_small_patch14_dinov2", embed_dim=32, depth=2, num_heads=2, img_size=224, num_classes=0
    ).eval()
    ours.load_state_dict(from_graph(arrays, nodes))
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        assert torch.allclose(ours.forward_features(pixels), expected, atol=1e-4)


def test_tensors_are_matched_by_position_and_shape() -> None:
    ours = {"a": torch.zeros(2), "b": torch.zeros(3)}
    theirs = {"x": torch.ones(2), "y": torch.ones(3)}
    assert list(renamed(theirs, ours)) == ["a", "b"]
    with pytest.raises(EncoderBenchError, match=r"y is \(4,\), b is \(3,\)"):
        renamed({**theirs, "y": torch.ones(4)}, ours)
    with pytest.raises(EncoderBenchError, match="1 tensors, the architecture has 2"):
        renamed({"x": torch.ones(2)}, ours)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = REAL_ENCODERS["lite0"]._replace(package="no_such_package")
    monkeypatch.setitem(REAL_ENCODERS, "lite0", absent)
    with pytest.raises(EncoderBenchError, match="no-such-package is not installed; run"):
        convert("lite0")


@pytest.mark.parametrize("name", list(REAL_ENCODERS))
def test_a_packaged_checkpoint_loads_and_its_hash_is_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = REAL_ENCODERS[name]
    if not util.find_spec(real.package) or not util.find_spec("onnx"):
        pytest.skip("the real encoders are packages: make real")
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path))
    folder = convert(name)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert convert(name) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    encoder = load_encoder(f"timm:{real.architecture}", weights=folder)
    assert list(encoder.resolution) == real.preprocessing["input_size"][1:]
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"weights_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="damaged or was changed"):
        load_encoder(f"timm:{real.architecture}", weights=folder)


def test_the_photo_study_trains_on_every_present_category() -> None:
    folder = Path(__file__).parents[2] / "studies" / "real"
    scenes = open_data("scenes:5:64:2:24", QuietReporter())
    few, every = (
        list(scenes.task_samples("mci", load_task(name), "train"))
        for name in ("mci", str(folder / "mci.toml"))
    )
    assert len(every) > len(few)
    assert 2 * sum(sample.target == "Yes." for sample in every) == len(every)
