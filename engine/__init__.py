"""The method: one clip, one machine. Read `stages.py` first, it is the whole program in order."""

import os
import sys

if sys.platform == "darwin":  # what Metal has no kernel for runs on the CPU; torch reads this while it is imported
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
