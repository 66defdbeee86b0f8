"""Samples and batches as they are read: what fails is told in one line that names the sample or the batch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

from torch.utils.data import Dataset

from ._text import one_line
from .errors import InputError


class NamedSamples(Dataset[Any]):
    """Samples; one that cannot be read is named by its index."""

    def __init__(self, samples: Any, where: str) -> None:
        self.samples, self.where = samples, where

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.samples[index]
        except OSError as error:
            raise _unreadable(f"{self.where}: sample {index}", error) from error

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if (together := getattr(self.samples, "__getitems__", None)) is not None:
            with contextlib.suppress(OSError):
                return list(together(indices))
        return [self[index] for index in indices]


def retold(batches: Iterator[Any], where: str) -> Iterator[Any]:
    """The same batches; samples that cannot be read, or do not make a batch, are told in one line."""
    for number in count():
        try:
            batch = next(batches)
        except StopIteration:
            return
        except InputError:
            raise
        except OSError as error:
            raise _unreadable(f"{where}: batch {number}", error) from error
        except (TypeError, RuntimeError) as error:
            if (told := _collating_failed(one_line(error))) is None:
                raise
            raise InputError(f"{where}: {told}") from error
        yield batch


def _unreadable(what: str, error: OSError) -> InputError:
    if isinstance(error, InputError):
        return error
    reason = str(error).strip().splitlines()[-1:]  # below the traceback of a DataLoader's worker
    said = one_line(reason[0]) if reason else ""
    return InputError(f"{what} cannot be read ({said or type(error).__name__}); mend it, or leave it out")


def _collating_failed(said: str) -> str | None:
    """What torch's ``default_collate`` says, in the user's words; None if it is another error."""
    unequal = ("stack expects each tensor to be equal size", "resize storage", "should be of equal size")
    if any(text in said for text in unequal):
        sizes = re.search(r"got (\[[^]]*\]) at entry 0 and (\[[^]]*\])", said)
        shown = f" ({sizes[1]} and {sizes[2]})" if sizes else ""
        return (
            f"samples of different sizes{shown} do not make a batch; resize images to one (transforms.Resize((H, W)))"
        )
    if (found := re.search(r"batch must contain .*found (?:<class '([\w.]+)'>|(\S+))", said)) is None:
        return None
    kind = found[1] or found[2]
    if kind.startswith("PIL."):
        return "its DataLoader cannot stack PIL images; add ToTensor() to the transform, or set collate_fn=list"
    if kind == "NoneType":
        return "a sample holds None, which its DataLoader cannot stack; leave it out, or set collate_fn=list"
    return f"a sample holds a {kind}, which its DataLoader cannot stack; leave it out, or convert it to a tensor"
