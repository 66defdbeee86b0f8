"""Text of messages."""

from __future__ import annotations

__all__ = ["named", "one_line"]


def one_line(text: object) -> str:
    """What an error or another object says, on one line."""
    return " ".join(str(text).split())


def named(error: BaseException, most: int = 300) -> str:
    """An error's type and what it says, on one line of at most so many characters."""
    said = one_line(error)
    return f"{type(error).__name__}: {said}"[:most] if said else type(error).__name__
