"""How long an evaluator trains: checked at the doors, and in optimizer steps."""

from __future__ import annotations

from ..errors import InputError


def check_length(max_steps: object, max_epochs: object) -> None:
    """Raise InputError unless exactly one of the two is given, as an int of at least 1."""
    if (max_steps is None) == (max_epochs is None):
        raise InputError("compress: give max_steps or max_epochs, one of them")
    check_counts(max_steps, max_epochs)


def check_counts(max_steps: object, max_epochs: object) -> None:
    """Raise InputError if one that is given is not an int of at least 1."""
    for name, value in (("max_steps", max_steps), ("max_epochs", max_epochs)):
        if value is not None:
            _check_count(f"compress: {name}", value)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={value!r}; give an int of at least 1")


def steps_per_epoch(evaluator: object, given: int | None) -> int | None:
    """The optimizer steps of an epoch, as given or as the evaluator knows them; None if nobody does."""
    known: int | None = getattr(evaluator, "steps_per_epoch", None)
    if given is None:
        return known
    _check_count("steps_per_epoch", given)
    if known not in (None, given):
        raise InputError(f"steps_per_epoch={given} contradicts the evaluator's own, which is {known}; leave it out")
    return given


def in_steps(max_steps: int | None, max_epochs: int | None, per_epoch: int | None) -> int | None:
    """The optimizer steps of a training; None if epochs are given and nobody knows the steps of one."""
    by_epochs = None if max_epochs is None or per_epoch is None else max_epochs * per_epoch
    return min((steps for steps in (max_steps, by_epochs) if steps is not None), default=None)
