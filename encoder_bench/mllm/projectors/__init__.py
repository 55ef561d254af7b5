"""Projectors: patch tokens `(B, N, D)` to visual tokens `(B, M, D_llm)`, one family a file."""

from encoder_bench.mllm.projectors.registry import build_projector, projector_names

__all__ = ["build_projector", "projector_names"]
