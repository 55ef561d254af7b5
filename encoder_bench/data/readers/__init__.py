"""Readers of the official file layouts, one file for each data set."""
