"""Digests that identify networks and images."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def digest_of(model: nn.Module) -> str:
    """SHA-256 of a network's state: names (those inside wrappers), dtypes, shapes and values."""
    from ._wrapped import unwrapped

    return digest_of_tensors(**unwrapped(model).state_dict())


def digest_of_json(content: Any) -> str:
    """SHA-256 of JSON-ready values, in hexadecimal; the order of keys is of no account."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_of_tensors(**tensors: Tensor) -> str:
    """SHA-256 of tensors' names, dtypes, shapes and values, in hexadecimal."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
