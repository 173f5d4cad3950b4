"""Disks and systems that refuse, without a disk."""

import resource
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def full_disk(free: int):
    """A disk on which files cannot grow beyond `free` bytes, as seen by this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def refused(path: Path, how: str):
    """The system refuses to read a file: too many are open (EMFILE), or the disk fails (EIO).

    Yields a part of what the user reads then.
    """
    if how == "EMFILE":
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            yield "Too many open files"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return
    kept = path.rename(path.with_name("kept"))
    path.symlink_to("/proc/self/mem")  # whose first page cannot be read
    try:
        yield "Input/output error"
    finally:
        kept.rename(path)
