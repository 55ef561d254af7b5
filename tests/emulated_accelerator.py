"""`python -m tests.emulated_accelerator ARGUMENTS`: encoder-bench on a device that is emulated.

`--device emulated` is a device of its own for torch, whose tensors lie in the CPU's memory. What
Apple's MPS refuses, it refuses: float64, tensors of two devices in one operation, and averages over
windows of unequal sizes. What is copied to it without waiting is lost, as it can be there (PyTorch
issue 189690). `EMULATED_FAULT=silu` makes an operation return 1.2 times what it should.

Reference: torch.utils.backend_registration, whose Python backends are experimental.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch.utils import backend_registration as registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from encoder_bench.cli import main

aten = torch.ops.aten
NAME = "emulated"
_TOO_WIDE = (torch.float64, torch.complex128)
_TAKE_TWO_DEVICES = {
    aten._has_compatible_shallow_copy_type.default,
    aten._index_put_impl_.default,
    aten._to_copy.default,
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}
_AUTOCAST = ("addmm", "bmm", "conv2d", "linear", "matmul", "mm", "scaled_dot_product_attention")


class _Device(registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def empty_cache(self) -> None:
        """Nothing is kept."""


class OnDevice(torch.Tensor):
    """A tensor on the device; its values are those of `host`."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "OnDevice":
        _check_dtype(host.dtype)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            host.stride(),
            host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        made.host = host
        return made

    def tolist(self) -> Any:
        return self.host.tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, torch.Tensor], *_: object) -> "OnDevice":
        return OnDevice(inner["host"])

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Lets what has no tensor of the device among its arguments make one."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do an operation on the CPU; its results are on the device if its arguments say so."""
    leaves = tree_leaves((args, kwargs))
    present = any(isinstance(leaf, OnDevice) for leaf in leaves)
    here = present
    if present and func not in _TAKE_TWO_DEVICES:
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnDevice) and leaf.ndim:
                raise RuntimeError(f"{func}: tensors of two devices, {leaf.device} and {NAME}:0")
    if (device := kwargs.get("device")) is not None:
        here = torch.device(device).type == NAME
        if here:
            _check_dtype(kwargs.get("dtype"))
            kwargs = {**kwargs, "device": torch.device("cpu")}
    host_args, host_kwargs = tree_map_only(OnDevice, lambda leaf: leaf.host, (args, kwargs))
    if present and func is aten._adaptive_avg_pool2d.default:
        _check_windows(host_args[0].shape[-2:], host_args[1])
    found = func(*host_args, **host_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not here:
        return found
    if func is aten._to_copy.default:
        lost = kwargs.get("non_blocking") and not present
        return OnDevice(torch.full_like(found, 77) if lost else found)
    if present and func is getattr(aten, os.environ.get("EMULATED_FAULT", "silu")).default:
        found = found * 1.2 if "EMULATED_FAULT" in os.environ else found
    wrapped = tree_map_only(
        torch.Tensor, lambda leaf: leaf if isinstance(leaf, OnDevice) else OnDevice(leaf), found
    )
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if present else wrapped


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype in _TOO_WIDE:
        raise TypeError(f"{NAME}:0 has no {dtype}")


def _check_windows(sizes: Sequence[int], wanted: Sequence[int]) -> None:
    if any(max(pair) % min(pair) for pair in zip(sizes, wanted, strict=True)):
        raise RuntimeError(f"{NAME}:0: {sizes} cannot be averaged to {wanted}: not divisible")


def _lower(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operation that computes in autocast's dtype."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def computed(*args: Any, **kwargs: Any) -> Any:
        def low(value: torch.Tensor) -> torch.Tensor:
            return value.to(torch.get_autocast_dtype(NAME)) if value.is_floating_point() else value

        with torch._C._ExcludeDispatchKeyGuard(key):
            args, kwargs = tree_map_only(torch.Tensor, low, (args, kwargs))
            return operation(*args, **kwargs)

    return computed


@contextlib.contextmanager
def _no_inference_mode() -> Iterator[None]:
    """Take `no_grad` for inference mode, in which a wrapped tensor cannot be a view."""

    def enter(mode: Any) -> None:
        mode.instead = torch.set_grad_enabled(torch.is_grad_enabled() and not mode.mode)
        mode.instead.__enter__()

    def leave(mode: Any, *error: Any) -> None:
        mode.instead.__exit__(*error)

    mode = torch.inference_mode
    with mock.patch.object(mode, "__enter__", enter), mock.patch.object(mode, "__exit__", leave):
        yield


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Add the device to torch; this process keeps it."""
    registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Device())
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(device=...) passes the mode by
    every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in _AUTOCAST:
        own.impl(name, _lower(getattr(aten, name).default), "AutocastPrivateUse1")
    plain = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with _Factories():  # a thread begins without the modes of the one that made it
            plain(thread)

    with _no_inference_mode(), mock.patch.object(threading.Thread, "run", run), _Factories():
        yield


if __name__ == "__main__":
    with emulated():
        main()
