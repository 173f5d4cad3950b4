"""What the README's figures come from; run as `python -m benchmarks.NAME` from the root."""
