"""encoder-bench: which pretrained visual encoder should you use in a multimodal LLM?"""

import os
from typing import TYPE_CHECKING, Any

# Read when torch is first imported. By default a thread of libgomp that waits spins for
# milliseconds, and on cores that others share keeps the thread that it waits for from running.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from encoder_bench.api import (
        compare,
        evaluate,
        load_model,
        load_results,
        predict,
        recommend,
        report,
        run,
        table,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "compare",
    "evaluate",
    "load_model",
    "load_results",
    "predict",
    "recommend",
    "report",
    "run",
    "table",
]


def __getattr__(name: str) -> Any:
    """Import the Python interface on first use, so that `encoder-bench --help` stays quick."""
    if name in __all__:
        from encoder_bench import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
