"""The embedded data set: drawn scenes with exact ground truth, made from a seed."""
