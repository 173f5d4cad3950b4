"""Where the files lie that a new project starts from."""

import sysconfig
from pathlib import Path

from cag.runtime.errors import UserError

PACKAGES = Path(__file__).resolve().parents[2]


def template() -> Path:
    """The folder with `dvc.yaml`, `presets/` and `classes/`: a checkout, or what pip installed.

    Raises:
        UserError: There is neither.
    """
    checkout, installed = PACKAGES, Path(sysconfig.get_path("data")) / "share/cag"
    for folder in (checkout, installed):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"{installed}: not found; install cag again with pip")
