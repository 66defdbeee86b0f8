"""Content of JSON files, checked against types: one line names the field that is off."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from ._text import one_line
from .errors import InputError

__all__ = ["Record", "checked"]

T = TypeVar("T")


class Record(BaseModel):
    """A model of what is written as JSON, not to be changed. `checked` reads it.

    Attributes:
        derived: names of properties that the JSON has beside the fields. Readers derive them anew.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    derived: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _with_derived(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **{name: getattr(self, name) for name in self.derived}}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return self.model_dump(mode="json")


_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


_MOST = 100  # characters of a value; reprlib's own limits are for each level


def _short(value: object) -> str:
    shown = _shorten.repr(value)
    return shown if len(shown) <= _MOST else shown[: _MOST - 3] + "..."


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # building one takes longer than using it


def checked(kind: type[T], content: Any, what: str) -> T:
    """``content`` as ``kind``, in JSON's strict sense: ``1.0`` is no integer, ``"1"`` no number.

    Args:
        kind: a `Record`, a dataclass or another type that pydantic knows.
        content: values as `json.loads` gives them.
        what: the name that ``content`` goes by in an error.

    Raises:
        ValueError: ``content`` is not of that type; one line names the first field.
    """
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what}: is not JSON ({one_line(error)}); give what to_dict wrote") from None
    try:
        adapter: TypeAdapter[T] = _adapter(kind)
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        detail = details[0]
        field = ".".join(str(part) for part in (what, *detail["loc"]))
        if detail["type"] == "value_error":
            said = f"{detail['ctx']['error']}"
        elif detail["type"] == "missing":
            said = "is missing"
        else:
            said = f"{_short(detail['input'])}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise InputError(one_line(f"{field}: {said}{more}")) from None
