"""The error that is meant for the person who ran the command."""


class UserError(Exception):
    """Something the user can put right: a missing file, a bad value, a full disk.

    The message is one line that names the file or key, what was found, what was expected and what
    to do. Programs print it and exit with status 1; any other exception is a defect.
    """


def in_one_line(error: Exception, longest: int = 300) -> str:
    """An exception's text in one line of at most so many characters; its kind if it has no text."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, longest)


def shortened(text: str, longest: int) -> str:
    """A text without what follows its first so many characters."""
    return text if len(text) <= longest else f"{text[:longest]}..."
