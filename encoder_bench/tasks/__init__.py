"""Task runners: the one evaluation loop and what each task adds to it."""
