"""An attack's parameters and code in words that a report and a journal's key can hold."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..._digest import digest_of_tensors

_FEW = 20  # values of an array that are written out


def json_ready(value: Any) -> Any:
    """A value as JSON can hold it. Large arrays become their digest, objects their text."""
    if isinstance(value, (bool, str, type(None))):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        value = torch.from_numpy(np.array(value)) if np.asarray(value).dtype.kind in "biuf" else value.tolist()
    if isinstance(value, torch.Tensor):
        if value.numel() > _FEW:
            return {"shape": list(value.shape), "sha256": digest_of_tensors(value=value)}
        value = value.tolist()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): json_ready(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [json_ready(each) for each in value]
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def source_digest(kind: type) -> str:
    """The full name of a class, with a digest of its source where it is neither ours nor ART's."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] in ("art", __name__.partition(".")[0]):
        return name
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return name
    return f"{name} {hashlib.sha256(source.encode()).hexdigest()[:16]}"
