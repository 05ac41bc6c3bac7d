"""`python -m cli` is `mdevns`."""

from cli.main import main

main()
