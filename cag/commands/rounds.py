"""Which round a command means."""

from collections.abc import Sequence

from cag.runtime.errors import UserError


def chosen_round(given: str | None, rounds: Sequence[str]) -> str:
    """The round of a name, of a number from 1, or by default the last.

    Args:
        given: What the user wrote, or None.
        rounds: The rounds of params.yaml, in their order.

    Raises:
        UserError: There is no such round.
    """
    if not rounds:
        raise UserError("params.yaml: rounds is empty, so there are no pseudo-labels")
    if given is None:
        return rounds[-1]
    if given in rounds:
        return given
    if given.isdecimal() and 1 <= int(given) <= len(rounds):
        return rounds[int(given) - 1]
    raise UserError(f"--round is '{given}'; params.yaml has {', '.join(rounds)}")
