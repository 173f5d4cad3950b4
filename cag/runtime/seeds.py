"""Seeds made from other seeds."""

import numpy as np


def mix(*parts: int) -> int:
    """A seed in [0, 2^63) from integers of at least 0; other integers give another seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
