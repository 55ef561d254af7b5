"""One run from plan to record: where the model side and the scoring side meet."""
