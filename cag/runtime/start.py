"""Before a program imports its libraries."""

import os
import signal
import sys

from cag.runtime.interrupts import end


def prepare() -> None:
    """Prepare a program of ours for the import of its libraries.

    Ctrl-C ends it with one line, as libraries may swallow a KeyboardInterrupt or turn it into
    another error. A backend that matplotlib does not know, in a variable, does not end it: figures
    become files. Changes nothing for who imports this library in a program of their own.
    """
    started = os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe")
    if started not in ("-m", "cag"):  # runpy calls it "-m" until it runs the module
        return
    os.environ.pop("MPLBACKEND", None)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
