"""Text of messages."""

from __future__ import annotations

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Sequence

_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


def one_line(text: object) -> str:
    """The text of an error or another object, on one line; its control characters are spelled out."""
    return visible(" ".join(str(text).split()))


def visible(text: str) -> str:
    """The text with its control characters spelled out, as ``\\x1b``, lest they steer a terminal or turn a line round.

    Line ends and tabs stay.
    """
    return text if text.isprintable() else "".join(_spelled(char) if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):  # also lone surrogates, and separators of lines
        return char not in "\n\t"
    return unicodedata.bidirectional(char) in _DIRECTIONS


def _spelled(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def named(error: BaseException, most: int = 300) -> str:
    """An error's type and message, on one line of at most ``most`` characters."""
    said = one_line(error)
    return f"{type(error).__name__}: {said}"[:most] if said else type(error).__name__


def short(value: object, most: int = 100) -> str:
    """A value as Python writes it, shortened: one line of at most ``most`` characters."""
    try:
        shown = _ADDRESS.sub("", one_line(_shorten.repr(value)))  # its limits hold for each level of nesting
    except Exception:  # an integer of more than 4,300 digits, or a __repr__ of the user's that fails
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def unknown_key(name: str, known: Sequence[str]) -> str:
    """The message about a key that is not among the known ones, with the near one, or all."""
    hint = did_you_mean(name, known, f"known: {', '.join(known)}")
    return f"{name}: unknown key{hint}"


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "", *, most: int = 1) -> str:
    """The end of a message about an unknown name: ``; did you mean a or b?``, else ``otherwise``. Case is ignored."""
    by_lower = {choice.lower(): choice for choice in known}
    close = [by_lower[match] for match in difflib.get_close_matches(str(name).lower(), by_lower, n=most)]
    cure = f"did you mean {' or '.join(close)}?" if close else otherwise
    return f"; {cure}" if cure else ""
