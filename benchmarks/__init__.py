"""The measurements behind the documented figures; run `python -m benchmarks.NAME` in the root."""

import os
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else PyTorch's profiler logs to the terminal
ROOT = Path(__file__).resolve().parents[1]
