"""Ctrl-C: one line, at any moment; and what becomes of worker processes."""

import os
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

MESSAGE = "interrupted; the next run goes on where it can"


def end(number: int, frame: FrameType | None) -> NoReturn:
    """A handler that says one line and ends the process without any cleaning up."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{MESSAGE}\n".encode())
    os._exit(128 + number)


def follow_parent() -> None:
    """Begin a worker process, which leaves signals to its parent and ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
