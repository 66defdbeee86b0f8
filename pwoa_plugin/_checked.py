"""JSON content checked against types; an error is one line that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from ._text import one_line, short
from .errors import InputError

T = TypeVar("T")

# Bounded, so that what a file says can be summed, divided and drawn.
Amount = Annotated[int, Field(ge=0, le=2**53)]
Measure = Annotated[float, Field(ge=0, le=1e100)]


class Record(BaseModel):
    """An immutable model of content that is written as JSON and read by `checked`.

    Attributes:
        derived: names of properties that the JSON has in addition to the fields; a reader computes them again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    derived: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _with_derived(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **{name: getattr(self, name) for name in self.derived}}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return self.model_dump(mode="json")


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # building one takes longer than using it


def checked(kind: type[T], content: Any, what: str) -> T:
    """JSON values as ``kind``, strictly: ``1.0`` is not an integer, ``"1"`` is not a number.

    The InputError names ``what`` and the first field that is wrong.
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
            said = f"{short(detail['input'])}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise InputError(one_line(f"{field}: {said}{more}")) from None
