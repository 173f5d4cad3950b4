"""Links from the pages to lines of the code: [`name`](../cag/module.py#L12).

On a code host they lead to the line. In the built site, which holds no code, they lead to the
function's entry in api.html, or are plain text. `python docs/hooks/sources.py` corrects the line
numbers after an edit.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[`(?P<name>[\w.]+)(?:\(\))?`\]\((?P<path>[\w./]+\.py)#L(?P<line>\d+)\)")
PAGES = ("README.md", "docs/*.md")


def line_of(name: str, module: Path) -> int:
    """The line where a class, a function, or a method such as `Fit.train` is defined.

    Raises:
        LookupError: The module has no such name.
    """
    body = ast.parse(module.read_text(encoding="utf-8")).body
    for part in name.split("."):
        nodes = [n for n in body if getattr(n, "name", None) == part]
        if not nodes:
            raise LookupError(f"{module}: defines no {name}")
        body = getattr(nodes[0], "body", [])
    return nodes[0].lineno


def corrected(page: Path) -> str:
    """A page's text with the line numbers that its links should have."""

    def link(match: re.Match) -> str:
        line = line_of(match["name"], page.parent / match["path"])
        return match.group().replace(f"#L{match['line']}", f"#L{line}")

    return LINK.sub(link, page.read_text(encoding="utf-8"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to code to the function's entry in the built site."""
    documented = (ROOT / "docs/api.md").read_text(encoding="utf-8").split()

    def link(match: re.Match) -> str:
        module = match["path"].removeprefix("../").removesuffix(".py").replace("/", ".")
        entry = f"{module}.{match['name']}"
        text = f"`{match['name']}`"
        return f"[{text}](api.md#{entry})" if entry in documented else text

    return LINK.sub(link, markdown)


if __name__ == "__main__":
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            path.write_text(corrected(path), encoding="utf-8")
