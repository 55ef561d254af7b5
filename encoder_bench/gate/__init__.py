"""The gate on scores: an accepted baseline and what is checked against it."""
