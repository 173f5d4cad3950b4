"""The error that is meant for the person who ran the command."""


class UserError(Exception):
    """Something the user can put right: a missing file, a bad value, a full disk.

    The message is one line that names the file or key, what was found, what was expected and what
    to do. Programs print it and exit with status 1; any other exception is a defect.
    """
