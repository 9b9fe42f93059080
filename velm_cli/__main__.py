"""`python -m velm_cli STAGE ...`, where the command `velm` is not on the PATH."""

import os
import sys

# -m puts the working folder first on the path, and a folder of photos may hold an omegaconf.py.
try:
    here = os.getcwd()
except OSError:  # it was removed; cli.py says so
    here = ""
if sys.path[0] == here != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]

from velm_cli.cli import main

main()
