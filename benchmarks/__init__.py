"""The measurements behind the documented figures; run `python -m benchmarks.NAME` in the root."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
