import os
import sys
from pathlib import Path

# Tiny tensors: more threads only wait for each other. Set before torch is loaded; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
