"""The error that is meant for the person who ran the command."""


class UserError(Exception):
    """Something the user can put right: a missing file, a bad value, a full disk.

    Its one line names the file or key, the value, what was expected and what to do. Programs print
    it and exit with status 1. Any other exception is a defect.
    """


def in_one_line(error: Exception, longest: int = 300) -> str:
    """An exception's text, or else its type, in one line of up to `longest` characters."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, longest)


def shortened(text: str, longest: int) -> str:
    """The first `longest` characters of a text, with "..." if there are more."""
    return text if len(text) <= longest else f"{text[:longest]}..."
