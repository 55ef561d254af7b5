"""What a run uses: device, processor, memory, package versions, and the processes that share it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from encoder_bench.base.errors import EncoderBenchError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_TIMEOUT = timedelta(days=2)
"""One process may encode many images while the others wait for its gradients."""

_PACKAGES = (
    "encoder-bench", "torch", "torchvision", "transformers", "timm", "open_clip_torch",
    "accelerate", "peft", "datasets", "safetensors", "tokenizers", "pycocoevalcap", "numpy",
    "pandas", "scipy", "scikit-learn", "pillow",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Return the installed version of every package that can change a score, and of Python."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def choose_device(name: str) -> torch.device:
    """Return the device of a `--device` flag; `auto` takes CUDA, then Apple's MPS, then the CPU.

    `auto` and `cuda` are this process' own one of several GPUs where it was launched with others.
    Convolutions in float32 stay so on CUDA, where torch rounds their inputs to TF32 by default: an
    EfficientNet's patch tokens then differ by 0.3% from a CPU's, and by 0.1% with the batch.

    Raises:
        EncoderBenchError: the name is no device, or the device is not there.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = _device(name)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise EncoderBenchError(f"--device {name}: not usable here ({reason})") from error
    return device


def _device(name: str) -> torch.device:
    import torch

    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
        if device.type != "meta":  # whose tensors have no values
            return device
    choices = "auto, cpu, cuda, cuda:1, mps"
    raise EncoderBenchError(f"--device {name}: no such device; give one of {choices}")


def emulates_bfloat16(device: torch.device) -> bool:
    """Return whether a GPU computes bfloat16 in software, as all before Ampere do (T4, V100)."""
    import torch

    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


def device_type(name: str) -> str:
    """Return `cpu`, `cuda`... of a `--device` flag, whether or not that device is here.

    Raises:
        EncoderBenchError: the name is no device.
    """
    return (choose_device(name) if name == "auto" else _device(name)).type


def hardware_facts(device: torch.device) -> dict[str, Any]:
    """Return processor, cores, memory and device names, as the record keeps them.

    Memory is in bytes.
    """
    import psutil
    import torch

    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device.type,
    }
    if device.type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(device)
        facts["accelerator_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return facts


def _processor_name() -> str:
    if sys.platform == "darwin":  # where platform knows "arm" alone
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            return found.stdout.strip()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak resident memory of this process, and of the accelerator, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        import torch

        peaks["accelerator"] = torch.cuda.max_memory_allocated(device)
    return peaks


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of one run; index 0 is the main one, which writes and scores."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def broadcast(self, value: T) -> T:
        """Return the main process's value on every process; the others' own is not used.

        Raises:
            EncoderBenchError: another process has stopped.
        """
        if self.count == 1:
            return value
        import torch.distributed

        values = [value]
        try:
            torch.distributed.broadcast_object_list(values, src=0)
            torch.distributed.barrier()
        except RuntimeError as error:
            raise EncoderBenchError(
                f"process {self.index} of {self.count}: another process has stopped; what it "
                "printed says why"
            ) from error
        return values[0]


def join_processes(*, cpu: bool) -> Processes:
    """Connect to the other processes of this run; `cpu` keeps the model off an accelerator."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=_TIMEOUT)
    return Processes(state.process_index, state.num_processes)
