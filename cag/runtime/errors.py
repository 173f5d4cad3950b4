"""The error that is meant for the person who ran the command."""

import re

# Characters that steer a terminal or change the order of what it shows, and halves of characters.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Something the user can put right: a missing file, a bad value, a full disk.

    Its one line names the file or key, the value, what was expected and what to do. Programs print
    it and exit with status 1. Any other exception is a defect. Control characters, as in a file's
    names, are shown by their codes.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def in_one_line(error: Exception, longest: int = 300) -> str:
    """An exception's text, or else its type, in one line of up to `longest` characters."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, longest)


def shortened(text: str, longest: int) -> str:
    """The first `longest` characters of a text, with "..." if there are more."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def printable(text: str) -> str:
    r"""A text with the codes of its control characters in their place, as \x1b."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
