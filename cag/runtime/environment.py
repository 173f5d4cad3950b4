"""Numbers in variables of the environment, checked before anything runs."""

import math
import os
from typing import NamedTuple

from cag.runtime.errors import UserError


class Launch(NamedTuple):
    """What a launcher such as torchrun says of this process."""

    rank: int  # 0 to world - 1
    world: int  # processes together
    local: int  # of them on this machine


def launch() -> Launch:
    """This process's part of its launch; a UserError if the variables say nothing sensible."""
    rank, world = _whole("RANK", 0, 0), _whole("WORLD_SIZE", 1, 1)
    local = _whole("LOCAL_WORLD_SIZE", 1, 1)
    hint = "start it with torchrun, or unset RANK, WORLD_SIZE and LOCAL_WORLD_SIZE"
    if rank >= world:
        raise UserError(f"RANK is {rank}, but WORLD_SIZE is {world}; {hint}")
    if world % local:
        raise UserError(f"WORLD_SIZE is {world}, no multiple of LOCAL_WORLD_SIZE {local}; {hint}")
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if world > 1 else ()
    missing = [name for name in needed if not os.environ.get(name)]
    if not missing and world > 1:
        _whole("MASTER_PORT", 0, 1)
        if _whole("LOCAL_RANK", 0, 0) >= local:
            missing = [f"LOCAL_RANK below {local}"]
    if missing:
        raise UserError(f"WORLD_SIZE is {world}, but {', '.join(missing)} is not set; {hint}")
    return Launch(rank, world, local)


def seconds(name: str) -> float | None:
    """A variable's finite number of at least 0, None if it is not set; else a UserError."""
    text = os.environ.get(name)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(
            f"{name} is '{text}'; expected seconds, a number of at least 0, or unset it"
        )
    return number


def _whole(name: str, default: int, least: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or len(text) > 6 or int(text) < least:
        raise UserError(f"{name} is '{text}'; expected a whole number of at least {least}")
    return int(text)
