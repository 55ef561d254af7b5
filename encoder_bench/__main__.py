"""`python -m encoder_bench`: the same as the `encoder-bench` command."""

from encoder_bench.cli import main

main()
