"""The embedded data set: drawn scenes with exact ground truth, made from a seed."""

from encoder_bench.data.scenes.grammar import describe
from encoder_bench.data.scenes.graph import Scene, sample_scene

__all__ = ["Scene", "describe", "sample_scene"]
