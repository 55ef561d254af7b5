"""encoder-bench: which pretrained visual encoder should stand inside a multimodal LLM?

`load_results(folder)` reads every run of a results folder into one pandas frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoder_bench.results.export import load_results as load_results

__version__ = "0.1.0"
__all__ = ["__version__", "load_results"]


def __getattr__(name: str) -> Any:
    """Import `load_results` when it is first asked for, since pandas takes its time."""
    if name == "load_results":
        from encoder_bench.results.export import load_results

        return load_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
