"""A full disk without a disk."""

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(free: int):
    """A disk on which files cannot grow beyond `free` bytes, as seen by this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
