"""The pipeline's stages, one program each; run as `python -m stages.NAME`."""

import os
import sys

import cag  # noqa: F401  of this folder, even where another is installed

if sys.argv[0] == "-m":  # as Python calls a program until it runs it
    # This folder comes last, so that a file in it such as random.py hides no library.
    folder = os.path.dirname(__path__[0])
    sys.path.sort(key=lambda path: path in ("", folder))

from cag.runtime.start import prepare  # noqa: E402

prepare()
