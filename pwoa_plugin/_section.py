"""Sections of a config: strict fields, errors in one line, names from tables."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ._text import short, unknown_key
from .errors import InputError


class ConfigError(InputError):
    """An invalid config: one line that names the fields and the cure."""

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines  # each begins with the field's name, within the section that refuses it


def _refusal(error: ValidationError, known: list[str]) -> ConfigError:
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        field = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            lines.append(unknown_key(field, known))
        elif detail["type"] != "value_error":
            lines.append(f"{field}={short(detail['input'])}: {detail['msg'][0].lower()}{detail['msg'][1:]}")
        elif isinstance(nested := detail["ctx"]["error"], ConfigError):
            lines += [f"{field}.{line}" for line in nested.lines]
        else:
            lines.append(str(nested))  # our own text, which begins with the field
    return ConfigError(*dict.fromkeys(lines))


_LEAST, _MOST = 1e-37, 1e38  # about where float32 ends
_MOST_INT = 2**53  # a float holds it


def _is_number(annotation: Any) -> bool:
    """Whether a field is a number, or numbers, and cannot be true or false."""
    leaves = set(_leaves(annotation))
    return bool(leaves & {int, float}) and not leaves & {bool, str}


def _leaves(annotation: Any) -> Iterator[Any]:
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from map(type, parts)
    elif get_origin(annotation) is Annotated:
        yield from _leaves(parts[0])
    elif parts:
        for part in parts:
            yield from _leaves(part)
    else:
        yield annotation


def _each(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


class Section(BaseModel):
    """Keyword-only; unknown keys are refused; a field is validated again when it is set."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _usable_numbers(cls, value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
        """Refuse a truth value where a number is wanted, and numbers that overflow or vanish in float32."""
        name = str(info.field_name)
        if not _is_number(cls.model_fields[name].annotation):
            return handler(value)
        if any(isinstance(each, bool) for each in _each(value)):
            raise InputError(f"{name}={short(value)}: give a number, not true or false")
        made = handler(value)
        for each in _each(made):
            if isinstance(each, int) and abs(each) > _MOST_INT:
                raise InputError(f"{name}={short(made)} is too large; give at most {_MOST_INT}")
            if isinstance(each, float) and each and not _LEAST <= abs(each) <= _MOST:
                raise InputError(f"{name}={short(made)}: give 0, or a number between {_LEAST:g} and {_MOST:g}")
        return made

    if not TYPE_CHECKING:  # type checkers see the fields' own signature

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise _refusal(error, list(type(self).model_fields)) from None

        def __setattr__(self, name: str, value: Any) -> None:
            before = self.__dict__.get(name)
            try:
                super().__setattr__(name, value)
            except ValidationError as error:
                if name in type(self).model_fields:
                    self.__dict__[name] = before  # pydantic keeps a value that a whole-section check refuses
                raise _refusal(error, list(type(self).model_fields)) from None

    @property
    def is_set(self) -> bool:
        """Whether any option differs from its default."""
        return self != type(self)()


AnySection = TypeVar("AnySection", bound=Section)


def as_section(kind: type[AnySection], given: AnySection | Mapping[str, Any] | None, name: str) -> AnySection:
    """A section from an object, a dict, or None; InputError, with the section's ``name``, if a field is invalid."""
    if given is None:
        return kind()
    if isinstance(given, Mapping):
        try:
            return kind(**given)
        except InputError as error:
            raise InputError(f"{name}.{error}") from None
    if not isinstance(given, kind):
        raise InputError(f"{name} is a {type(given).__name__}; give a {kind.__name__} or a dict")
    return given


def key_of(table: Mapping[str, Any]) -> AfterValidator:
    """A field whose values are the keys of a table, so that a new entry can be configured."""

    def check(value: str, info: ValidationInfo) -> str:
        if value not in table:
            raise InputError(f"{info.field_name}={value!r} is unknown; use one of {', '.join(table)}")
        return value

    return AfterValidator(check)


def check_options(kind: type, options: Mapping[str, Any], **required: Any) -> None:
    """InputError unless ``kind(**required, **options)`` can be made."""
    known = [name for name in inspect.signature(kind).parameters if name not in required]
    for name in options:
        if name not in known:
            raise InputError(f"options: {kind.__name__} has no option {name!r}; it has {', '.join(known) or 'none'}")
    try:
        kind(**required, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"options: {error}") from None


def names(value: Any) -> Any:
    """One name as a tuple of names; ``auto`` stays."""
    return (value,) if isinstance(value, str) and value != "auto" else value


Names = Annotated[tuple[str, ...], BeforeValidator(names)]


def fraction(value: Any) -> Any:
    """A number for text such as ``8/255``; anything else unchanged."""
    if isinstance(value, str) and "/" in value:
        with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
            return float(Fraction(value.replace(" ", "")))
    return value


#: A number of pixel units, or text such as ``8/255``.
Pixels = Annotated[float, BeforeValidator(fraction)]
