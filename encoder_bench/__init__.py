"""encoder-bench: which pretrained visual encoder should stand inside a multimodal LLM?"""

__version__ = "0.1.0"
