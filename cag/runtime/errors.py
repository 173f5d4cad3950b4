"""Errors that are meant for the person who ran the command."""

import errno
import os
import re
import stat
import unicodedata
from pathlib import Path

# What to do where the system refuses: no defects of the program.
_SPACE = "free some space (or delete some files, if there is space), then run it again"
_HELD = "another program has it open: close it there, then run it again"
_OTHER_FOLDER = "change that, or use another folder"
_OTHER_FORM = (
    "its name and that on the disk look the same but have other Unicode forms (NFC and NFD): "
    "rename it there, or copy its name from there"
)
_NO_GOAL = "it is, or lies below, a link that leads to nothing: mend it, or connect its disk"
_TOO_MANY = "close other programs, or allow more open files: `ulimit -n 4096`"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _SPACE),
    **dict.fromkeys((errno.EAGAIN, errno.EBUSY, errno.ETXTBSY, errno.ENOLCK), _HELD),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _OTHER_FOLDER),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY), _OTHER_FOLDER),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _TOO_MANY),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN),
        "check the disk or the network drive, then try again",
    ),
    errno.ELOOP: "it is, or lies below, a link that leads back to itself: remove that link",
    errno.ENOMEM: "close other programs, or take fewer or smaller images at a time",
    errno.EFBIG: "allow larger files (`ulimit -f`), or use another disk",
    errno.ENAMETOOLONG: "use a shorter name",
}
# What Python says of a thread, and of a process, which has no file's name.
_NO_THREAD = "can't start new thread"
_NO_PROCESS = f"[Errno {errno.EAGAIN}] {os.strerror(errno.EAGAIN)}"
# Libraries in C and in Rust say it in their text.
_NUMBER = re.compile(r"(?:errno =|Errno|os error|Error code) (\d+)")

# Characters that steer a terminal or change the order of what it shows, and halves of characters.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Something the user can put right: a missing file, a bad value, a full disk.

    Its one line names the file or key, the value, what was expected and what to do. Programs print
    it and exit with status 1. Any other exception is a defect. Line breaks become spaces, other
    control characters, as in a file's names, their codes.
    """

    def __str__(self) -> str:
        return printable(" ".join(super().__str__().split()))


def in_one_line(error: Exception, longest: int = 300) -> str:
    """An exception's text, or else its type, in one line of up to `longest` characters."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, longest)


def shortened(text: str, longest: int) -> str:
    """The first `longest` characters of a text, with "..." if there are more."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def refusal(error: Exception, where: object = None) -> UserError | None:
    """The one line for what the system refused: disk, memory, processes; None: another error.

    `where` is the file, if the error does not name one.
    """
    if str(error) in (_NO_THREAD, _NO_PROCESS):
        hint = "close other programs, or allow more: `ulimit -u`, or a container's limit"
        return UserError(f"the system allows no more processes or threads; {hint}")
    text = _NUMBER.search(str(error))
    number = getattr(error, "errno", None) or (text and int(text[1]))
    number = errno.ENOMEM if isinstance(error, MemoryError) else number
    if number not in REMEDIES:
        return None
    unnamed = "the memory" if number == errno.ENOMEM else "the disk"
    # Where a copy or a move fails, the second name is what it would be.
    names = (getattr(error, name, None) for name in ("filename2", "filename"))
    where = next(filter(None, names), where) or unnamed
    return UserError(f"{where}: {os.strerror(number)}; {REMEDIES[number]}")


def refuse_special(path: str | Path) -> None:
    """Raise a UserError for a pipe, a socket or a device: who reads one may wait for ever."""
    if error := _special(path):
        raise error


def _special(path: str | Path) -> UserError | None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # who reads it says why
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    problem = "is no file and no folder, but a pipe, a socket or a device"
    return UserError(f"{path}: {problem}; put a file in its place, or remove it")


def absent(path: str | Path, what: str, remedy: str) -> UserError:
    """The error that a file or folder is not there.

    Or only under a name that looks the same, or something else is, such as a pipe.
    """
    if error := _special(path):
        return error
    path = Path(path)
    parts = (*reversed(path.parents), path)
    missing = next((part for part in parts if not os.path.exists(part)), Path())
    if os.path.islink(missing):
        remedy = _NO_GOAL
    elif _in_other_form(missing):
        remedy = _OTHER_FORM
    return UserError(f"{path}: no such {what}; {remedy}")


def _in_other_form(missing: Path) -> bool:
    """Whether a file or folder that is not there is so in another Unicode form."""
    try:
        names = os.listdir(missing.parent)
    except OSError:
        return False
    return any(_same_letters(name, missing.name) for name in names)


def _same_letters(*names: str) -> bool:
    return len({unicodedata.normalize("NFC", name) for name in names}) == 1


def printable(text: str) -> str:
    r"""A text with the codes of its control characters in their place, as \x1b."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
