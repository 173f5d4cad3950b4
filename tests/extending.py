"""The worked examples of docs/extending.md, applied to a copy of the project."""

import re
import subprocess
from pathlib import Path

from project import ROOT

PAGE = ROOT / "docs/extending.md"


def section(title: str) -> str:
    """The text under a heading of the page."""
    return PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def apply(title: str, project: Path) -> list[str]:
    """Apply the changes under a heading to a project; return the files that they touch."""
    changes = re.findall(r"```diff\n(.*?)```", section(title), re.DOTALL)
    for change in changes:
        command = ["git", "apply", "-"]
        subprocess.run(command, cwd=project, input=change, text=True, check=True)
    return [re.search(r"^\+\+\+ b/(.+)$", change, re.MULTILINE)[1] for change in changes]
