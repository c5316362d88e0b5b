"""`python -m ra_bench` is `ra-bench`."""

from ra_bench.cli import main

main()
