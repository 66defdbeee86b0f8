"""Attacks that are not the package's own: by name, class or object."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import partial
from typing import Any

from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from ..._own_code import importing_here, near_own
from ..._text import did_you_mean, named, short
from ...errors import InputError
from .art_attack import ARTAttack
from .art_autoattack import ARTAutoAttack
from .base import Attack, AttackSettings

AnyAttack = str | Attack | EvasionAttack | type[Attack] | type[EvasionAttack] | partial[Any] | Mapping[str, Any]
"""What stands for one attack: see `as_attack`."""


def split_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of ``NAME(option=value, ...)``, of literal values; nothing is evaluated.

    Raises:
        InputError: what is in the parentheses is something else.
    """
    name, opened, rest = text.strip().partition("(")
    if not opened:
        return name, {}
    try:
        if not rest.endswith(")"):
            raise ValueError
        call = ast.parse(f"call({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        options = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg is not None}
        if len(options) < len(call.keywords):
            raise ValueError
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise InputError(
            f"attacks: {short(text)} is not a name with options; write NAME(option=value, ...), "
            "each value a number, a text in quotes, True, False, None or a list of these"
        ) from None
    return name.strip(), options


def of_art(name: str, options: Mapping[str, Any]) -> Attack:
    """The attack of `art.attacks.evasion` of that name.

    Raises:
        InputError: there is none, or an option is not its class's.
    """
    evasion = importlib.import_module("art.attacks.evasion")
    kinds = {
        key: kind for key, kind in vars(evasion).items() if inspect.isclass(kind) and issubclass(kind, EvasionAttack)
    }
    if name not in kinds:
        cure = did_you_mean(name, kinds, "see art.attacks.evasion", most=2)
        if name == "BrendelBethgeAttack":
            cure = ": it needs the package numba; pip install numba"
        raise InputError(f"attacks: 'art:{name}' is not an attack of art.attacks.evasion{cure}")
    return of_kind(kinds[name], options)


def imported(spec: str, options: Mapping[str, Any]) -> Attack:
    """The attack of your own code: ``package.module:Class``. This runs that code.

    Imports also look in the current directory.

    Raises:
        InputError: it cannot be imported, or is no attack.
    """
    try:
        with importing_here():
            kind = pkgutil.resolve_name(spec)
    except Exception as error:
        cure = near_own(spec, error) or "; give package.module:Class, as myattacks:MyAttack"
        raise InputError(f"attacks: importing {spec!r} fails ({named(error)}){cure}") from error
    try:
        return as_attack(kind, options)
    except InputError as error:
        raise InputError(f"attacks: {spec!r}: {str(error).removeprefix('attacks: ')}") from error


def of_kind(kind: type, options: Mapping[str, Any]) -> Attack:
    """The attack of a class: of `EvasionAttack`, or of `Attack`."""
    if inspect.isclass(kind) and issubclass(kind, EvasionAttack):
        if kind.__module__.startswith("art.") and kind.__name__ == "AutoAttack" and not options.keys() - {"name"}:
            return ARTAutoAttack(**options)  # quiet, as the class itself cannot be
        return ARTAttack(kind, **options)
    if not issubclass(kind, Attack):
        raise InputError(f"attacks: {kind.__name__} is no attack; give a class of Attack, or of ART's EvasionAttack")
    try:
        return kind(**options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"attacks: {kind.__name__} cannot be made ({named(error)}); give the options it takes"
        ) from error


def as_attack(item: Any, options: Mapping[str, Any]) -> Attack:
    """The attack of a class, of an object, or of `functools.partial` of a class."""
    if isinstance(item, partial):
        if item.args:
            raise InputError(f"attacks: {short(item)} has arguments without a name; name each option")
        return as_attack(item.func, {**item.keywords, **options})
    if inspect.isclass(item):
        return of_kind(item, options)
    if isinstance(item, EvasionAttack):
        return ARTAttack(item, **options)
    if isinstance(item, Attack) and not options:
        return item
    raise InputError(f"attacks: {short(item)} is not an attack; give a name, a class or an instance of Attack")


class ImportedAttack(Attack):
    """An attack that a file names as ``package.module:Class``: its code is imported when it is to run.

    Args:
        spec: ``package.module:Class``.
        options: of the class, and ``name``.
    """

    def __init__(self, spec: str, options: Mapping[str, Any]) -> None:
        super().__init__(name=options.get("name", spec.rpartition(":")[2]))
        self.spec = spec
        self.options = dict(options)

    def load(self) -> Attack:
        """The attack itself. This runs the code of its module."""
        return imported(self.spec, self.options)

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        return self.load().parameters(settings)

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        return self.load().build(estimator, settings)
