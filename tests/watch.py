"""The files that any process opens, from the kernel (inotify, only on Linux)."""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

OPENED, OVERFLOW = 0x20, 0x4000
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


@contextmanager
def watched(root: Path) -> Iterator[Callable[[], set[str]]]:
    """Watch a folder and everything below it.

    Yields:
        A function that returns all that was opened until now: posix paths below `root` of files,
        and of folders that were listed.
    """
    folders = [root, *(path for path in sorted(root.rglob("*")) if path.is_dir())]
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    watches = {libc.inotify_add_watch(queue, os.fsencode(path), OPENED): path for path in folders}
    assert queue >= 0 and min(watches) > 0, os.strerror(ctypes.get_errno())
    paths: set[str] = set()

    def opened() -> set[str]:
        while True:
            try:
                events = os.read(queue, 1 << 16)
            except BlockingIOError:
                return paths
            while events:
                watch, mask, _, length = EVENT.unpack_from(events)
                assert not mask & OVERFLOW, "more files were opened than the kernel could report"
                name = events[EVENT.size : EVENT.size + length].rstrip(b"\0")
                path = watches[watch] / os.fsdecode(name)
                paths.add(path.relative_to(root).as_posix())
                events = events[EVENT.size + length :]

    try:
        yield opened
    finally:
        os.close(queue)
