"""Set before torch is imported: tiny tensors are fastest on one thread, also beside other test processes.

And velm shows its own faults to those who test it, where users get a line and a file with the traceback.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VELM_TRACEBACK", "1")
