"""Metrics: pure functions, each named after the paper or reference code it equals."""
