"""Formulas of the pages: $...$ in a line and $$...$$ on their own become MathML.

A browser draws MathML without a script, and GitHub draws the same dollars in the sources.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.exceptions import PluginError

# Before backslash escapes (180), which formulas are full of, and after code spans (190).
PRIORITY = 185
DISPLAY = r"\$\$(?P<formula>.+?)\$\$"
# No space inside the dollars and no digit after them: "from 5 $ to 10 $" is no formula.
INLINE = r"(?<![\\$\w])\$(?P<formula>[^\s$](?:[^$]*[^\s$])?)\$(?![\d$])"

# Parts that an element must have, which the converter does not check.
PARTS = {
    **dict.fromkeys(("mfrac", "mroot", "msub", "msup", "munder", "mover"), 2),
    **dict.fromkeys(("msubsup", "munderover"), 3),
}


def mathml(formula: str, display: bool) -> str:
    """MathML of a LaTeX formula.

    Args:
        formula: LaTeX without its dollars.
        display: Whether it stands on its own.

    Returns:
        A <math> element; on its own, in a <div class="formula"> that can scroll.

    Raises:
        PluginError: The formula has a command that is not known, or cannot be read.
    """
    try:
        element = convert(" ".join(formula.split()), display="block" if display else "inline")
    except Exception as error:  # the converter raises many kinds
        raise PluginError(f"formula {formula!r}: {type(error).__name__} {error}") from None
    tree = ElementTree.fromstring(element)
    unknown = re.search(r"\\[A-Za-z]+", "".join(tree.itertext()))
    if unknown:
        raise PluginError(f"formula {formula!r}: {unknown.group()} is not known to latex2mathml")
    for part in tree.iter():
        name = part.tag.rpartition("}")[2]
        if len(part) != PARTS.get(name, len(part)):
            raise PluginError(
                f"formula {formula!r}: <{name}> has {len(part)} of {PARTS[name]} parts"
            )
    return f'<div class="formula">{element}</div>' if display else element


class Formula(InlineProcessor):
    """Puts a formula's MathML where its dollars were."""

    def __init__(self, pattern: str, markdown: Markdown, display: bool):
        super().__init__(pattern, markdown)
        self.display = display

    def handleMatch(self, match: re.Match, data: str) -> tuple[str, int, int]:  # noqa: N802
        """Keep the element from further processing."""
        element = mathml(match["formula"], self.display)
        return self.md.htmlStash.store(element), match.start(0), match.end(0)


class Formulas(Extension):
    """Both kinds of formula as a Markdown extension."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register them, the longer dollars first."""
        md.ESCAPED_CHARS = [*md.ESCAPED_CHARS, "$"]
        md.inlinePatterns.register(Formula(DISPLAY, md, True), "formula-display", PRIORITY + 1)
        md.inlinePatterns.register(Formula(INLINE, md, False), "formula", PRIORITY)


def on_config(config):
    """Add the extension to those of `mkdocs.yml`."""
    config.markdown_extensions.append(Formulas())
    return config
