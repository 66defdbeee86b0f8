"""Files of the Hugging Face Hub, from its cache or downloaded into it."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from .._text import did_you_mean, named
from ..errors import InputError, missing
from .training_aids import CheckpointError

_logger = logging.getLogger(__name__)


class Spec(NamedTuple):
    """What ``hf:owner/name@revision/file.safetensors`` names."""

    repo: str
    revision: str | None
    file: str


class NoSuchFileError(CheckpointError):
    """The repository is there and lacks the file."""


def spec_of(name: str) -> Spec:
    """The parts of a name; the file is ``model.safetensors`` unless it is given."""
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([^/\s]+))?(?:/(\S+\.safetensors))?", name)
    if match is None:
        raise InputError(f"{name!r}: give hf:owner/name, hf:owner/name@revision or hf:owner/name/file.safetensors")
    return Spec(match[1], match[2], match[3] or "model.safetensors")


def hub_file(name: str, file: str, *, said: str) -> Path:
    """A file of a repository: from the hub's cache if it is there, else downloaded.

    Args:
        name: ``hf:owner/name``, also with a revision.
        file: its name in the repository.
        said: what the user wrote, for messages.

    Raises:
        CheckpointError: there can be no such name, there is no such repository, revision or file, or no connection.
    """
    repo, revision, _ = spec_of(name)
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise missing(said, "huggingface_hub", "hub") from error
    place = f"{repo}{f'@{revision}' if revision else ''}"
    try:
        there = hub.try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(there, str):
            return Path(there)
        path = hub.hf_hub_download(repo, file, revision=revision)
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{said!r}: {file} of {place} is not in the hub's cache and cannot be downloaded; run again with network "
            f"access, or where there is, `hf download {repo}`, and copy the cache here (HF_HOME){_near(hub, repo)}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise NoSuchFileError(
            f"{said!r}: {place} has no {file}; name another file, hf:{repo}/FILE.safetensors. Pickled weights are not "
            "taken from the hub: download them, and give the file as model.checkpoint"
        ) from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{said!r}: {place} is gated; accept its terms on huggingface.co, then run `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        cure = _near(hub, repo) or f"; see https://huggingface.co/{repo.partition('/')[0]}"
        raise CheckpointError(f"{said!r}: the hub has no {place}, or it is private{cure}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{said!r}: the hub can have no such name ({named(error, 200)}); give hf:owner/name as it is there"
        ) from error
    except Exception as error:  # of the HTTP client, which is another one in other releases of huggingface_hub
        raise CheckpointError(
            f"{said!r}: {file} cannot be downloaded ({named(error, 200)}); run again later"
        ) from error
    _logger.info("%s: downloaded %s to %s", said, file, path)
    return Path(path)


def _near(hub: Any, repo: str) -> str:
    """Repositories in the cache with a name like this one."""
    try:
        cached = [each.repo_id for each in hub.scan_cache_dir().repos if each.repo_type == "model"]
    except Exception:  # no cache yet
        return ""
    return did_you_mean(repo, [each for each in cached if each != repo], most=3)
