"""Readers of the official file layouts, the embedded scenes, and checks on both."""
