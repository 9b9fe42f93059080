"""Set before torch is imported: tiny tensors are fastest on one thread, also beside other test processes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
