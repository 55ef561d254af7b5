"""Weights that come over a wire: from a Hub, and from their authors' own address.

The server runs on this machine; the libraries' own download code talks to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import save_file

from encoder_bench.base.errors import WeightsError
from encoder_bench.base.network import refusal
from encoder_bench.base.recipes import LanguageModelSettings
from encoder_bench.encoders.bundled import seeded_backbone, tiny_processor
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.encoders.weights import encoder_tensors, fetch_address
from encoder_bench.mllm.loading import load_language_model
from tests.encoders.web import COMMIT, serving

httpx = import_module(hub_errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
"""What the Hub's client sends with: httpx, or httpx2 from huggingface_hub 2 on."""
_THREE_LOADERS = """
import sys
from open_clip import pretrained
from encoder_bench.encoders.registry import load_encoder
from encoder_bench.base.errors import WeightsError
pretrained._PRETRAINED["ViT-S-32-alt"] = {
    "test": pretrained._pcfg(hf_hub="someone/clip/"),
    "tampered": pretrained._pcfg(hf_hub="tampered/clip/"),
}
for name in sys.argv[1:]:
    try:
        encoder = load_encoder(name)
        print(name, encoder.weights_revision, encoder.fingerprint())
    except WeightsError as error:
        print(name, "refused:", error)
"""
_NAMES = ("hf:someone/dino", "timm:vit_tiny_patch16_224@someone/timm",
          "open_clip:ViT-S-32-alt/test")  # fmt: skip
_TAMPERED = ("hf:tampered/dino", "timm:vit_tiny_patch16_224@tampered/timm",
             "open_clip:ViT-S-32-alt/tampered")  # fmt: skip


def write_repositories(root: Path) -> None:
    import open_clip
    import timm

    torch.manual_seed(0)
    dino, small, clip = (root / "someone" / name for name in ("dino", "timm", "clip"))
    seeded_backbone("dino").save_pretrained(dino)
    tiny_processor().save_pretrained(dino)
    small.mkdir()
    save_file(
        timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(),
        small / "model.safetensors",
    )
    clip.mkdir()
    state = open_clip.create_model("ViT-S-32-alt", pretrained=None).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        clip / "open_clip_model.safetensors",
    )


def load_elsewhere(home: Path, endpoint: str | None, *names: str) -> list[str]:
    """Load encoders in a process of its own, whose Hub is `endpoint`, or none."""
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "ENCODER_BENCH_CACHE": str(home / "own"),
        "HF_HUB_OFFLINE": "0" if endpoint else "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    } | ({"HF_ENDPOINT": endpoint} if endpoint else {})
    result = subprocess.run(
        [sys.executable, "-c", _THREE_LOADERS, *names],
        capture_output=True, text=True, env=environment, timeout=400, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.timeout(900)
def test_every_loader_downloads_resumes_works_offline_and_refuses_what_was_tampered_with(
    tmp_path: Path,
) -> None:
    served, home = tmp_path / "served", tmp_path / "home"
    write_repositories(served)
    shutil.copytree(served / "someone", served / "tampered")
    with serving(served) as web:
        web.interrupted = {"model.safetensors", "open_clip_model.safetensors"}
        web.tampered = {"tampered"}
        lines = load_elsewhere(home, web.address, *_NAMES, *_TAMPERED)
    assert [line.split()[:2] for line in lines[:3]] == [[name, COMMIT] for name in _NAMES]
    assert not web.interrupted
    assert web.ranges, "a file that broke off was fetched from its beginning"
    assert len(lines) == 6
    assert all("refused: " in line and "its sha256 is" in line for line in lines[3:]), lines
    assert (home / "hub" / "models--someone--dino").is_dir()
    assert load_elsewhere(home, None, *_NAMES) == lines[:3]


def moco_checkpoint(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what MoCo v3's script saves: two encoders, their heads, and the optimizer's state."""
    online = {f"module.base_encoder.{name}": tensor for name, tensor in state.items()}
    slow = {f"module.momentum_encoder.{name}": tensor + 1 for name, tensor in state.items()}
    head = {"module.base_encoder.head.0.weight": torch.zeros(2, 2)}
    return {"epoch": 300, "arch": "vit_small", "state_dict": online | slow | head,
            "optimizer": {"state": {}}}  # fmt: skip


def ibot_checkpoint(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"state_dict": state | {"masked_embed": torch.zeros(1, 192)}}


ADDRESS = "https://example.org/released/checkpoint.pth"
NAME = f"timm:vit_tiny_patch16_224@{ADDRESS}"


@pytest.fixture(scope="module")
def timm_state() -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    return dict(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict())


@pytest.mark.parametrize("wrap", [moco_checkpoint, ibot_checkpoint, dict])
def test_an_authors_checkpoint_is_the_encoder_in_it(
    wrap: Any, timm_state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoder_bench.base.hashing import hash_file

    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "checkpoint.pth"
    torch.save(wrap(timm_state), file)
    encoder = load_encoder(NAME, weights=file)
    own = encoder.backbone.state_dict()
    assert set(own) == set(timm_state)
    assert all(torch.equal(own[name], tensor) for name, tensor in timm_state.items())
    assert encoder.weights_revision == f"sha256:{hash_file(file)}"
    assert load_encoder(NAME, weights=tmp_path).fingerprint() == encoder.fingerprint()
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  checkpoint.pth\n")
    with pytest.raises(WeightsError, match="was changed: its sha256"):
        load_encoder(NAME, weights=file)


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("never-made",)


def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Malicious()}, "checkpoint.pth")
    with pytest.raises(WeightsError, match="holds more than weights"):
        load_encoder(NAME, weights=tmp_path / "checkpoint.pth")
    assert not Path("never-made").exists()


def test_a_file_without_an_encoder_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(WeightsError, match="holds no tensors of an encoder"):
        load_encoder(NAME, weights=tmp_path / "checkpoint.pth")
    assert encoder_tensors({"teacher": {"backbone.a": torch.ones(1), "head.b": torch.ones(1)}}) == {
        "a": torch.ones(1)
    }


def test_an_address_is_fetched_once_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCODER_BENCH_CACHE", str(tmp_path / "cache"))
    content = bytes(range(256)) * 400
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "weights.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth is not on this machine.*--weights PATH"):
        fetch_address("mine", "https://example.org/weights.pth")
    monkeypatch.setattr("encoder_bench.encoders.weights.is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(tmp_path / "served") as web:
        web.interrupted = {"weights.pth"}
        address = f"{web.address}/weights.pth"
        file = fetch_address("mine", address)
        assert file.read_bytes() == content
        assert web.ranges
        file.rename(file.with_name("weights.pth.incomplete"))  # as a kill before the last step
        assert fetch_address("mine", address).read_bytes() == content
        assert web.ranges[-1] == f"bytes={len(content) - 1}-"
        with pytest.raises(WeightsError, match="cannot be read"):
            fetch_address("mine", f"{web.address}/absent.pth")
    assert fetch_address("mine", address) == file


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from encoder_bench.encoders.encoder import LoadOptions
    from encoder_bench.encoders.registry import find_spec
    from encoder_bench.encoders.timm import load_timm

    torch.save({"a": torch.zeros(1)}, tmp_path / "checkpoint.pth")
    spec = replace(find_spec(NAME), revision=f"sha256:{'0' * 64}")
    with pytest.raises(WeightsError, match="the catalogue names sha256:0000"):
        load_timm(spec, tmp_path / "checkpoint.pth", LoadOptions())


def answered(kind: type[Exception], status: int) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co/api/models/a/b")
    return kind("no", response=httpx.Response(status, request=request))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answered(hub_errors.GatedRepoError, 403), "gated: accept its licence on .*a/b.*log in"),
        (answered(hub_errors.RepositoryNotFoundError, 404), "no such repository.*check the name"),
        (answered(hub_errors.HfHubHTTPError, 401), r"refuses access \(401\): log in again"),
        (answered(hub_errors.HfHubHTTPError, 503), "error 503: try again later"),
        (httpx.ReadTimeout("slow"), "within 3 seconds: try again"),
        (httpx.ConnectError("none"), r"cannot be reached \(ConnectError\)"),
    ],
)
def test_the_hubs_answers_are_told_apart(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("encoder_bench.base.network.is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(WeightsError, match=f"encoder hf:a/b.*{message}.*--weights PATH"):
        load_encoder("hf:a/b")
    with pytest.raises(WeightsError, match=f"LLM a/b.*{message}.*--llm FOLDER"):
        load_language_model(LanguageModelSettings(name="a/b"))


def test_a_file_that_a_repository_lacks_is_no_refusal() -> None:
    assert refusal(answered(hub_errors.RemoteEntryNotFoundError, 404), "a/b") is None
