"""Many runs: the matrix of a comparison, where its runs are done, and how they stand."""
