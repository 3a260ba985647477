"""`python -m tsprune` is the command line."""

from tsprune.cli import main

main()
