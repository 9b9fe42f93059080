"""`python -m velm_cli STAGE ...`, as torchrun needs it."""

from velm_cli.cli import main

main()
