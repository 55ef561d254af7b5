"""Tasks: one evaluation for all of them, and what each kind adds to it."""
