"""What the README's figures come from; run as `python -m benchmarks.NAME` from the root."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
