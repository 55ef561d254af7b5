"""The six objectives that make the tiny zoo, the tiny language model, and what they share."""
