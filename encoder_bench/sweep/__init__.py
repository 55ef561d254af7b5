"""Many runs: the matrix of a comparison, where its cells run, and how they stand."""
