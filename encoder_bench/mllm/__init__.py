"""The multimodal LLM: projector, language model, and the splice between them."""
