"""How to judge: one model of all settings, checked once, and bound to the images once."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Self, TypedDict, TypeVar

import torch
from pydantic import BeforeValidator, ConfigDict, model_validator
from torch import nn

from .._devices import check_device
from .._logits import Output
from .._network import check_network
from .._pixels import PerChannel, PixelRange, positive_pixels, refuse_radius_of_other_pixels
from .._random import check_seed, seeded
from .._section import Section, fraction
from .._text import short, unknown_key
from ..errors import InputError
from .attacks import AnyAttack, Attack, make_attack
from .estimator import model_device
from .images import Images, collect
from .protocol import Count, Norm, Pixels, Protocol, as_attacks, load_protocol

_F = TypeVar("_F", bound=Callable[..., Any])


def radii_of(value: Any) -> tuple[Any, ...]:
    """Radii of a curve: one alone, or several."""
    alone = isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0
    return (value,) if alone else tuple(value)


def _one_attack(value: Any) -> Attack:
    try:
        return as_attacks(value)[0]
    except InputError as error:
        raise InputError(f"curve_attack={short(value)}: {error}") from None


def radius_of_curve(name: str, value: Any) -> float:
    """A radius; 0, where images are clean, is a curve's first in any case."""
    return 0.0 if not isinstance(value, bool) and fraction(value) in (0, "0") else positive_pixels(name, value)


_RadiusOfCurve = Annotated[float, BeforeValidator(lambda value: radius_of_curve("curve", value))]


class JudgeOptions(TypedDict, total=False):
    """Keywords of `evaluate`, as users give them; see `JudgeSettings`. None stands for the default."""

    protocol: str | os.PathLike[str] | Protocol | None
    attacks: AnyAttack | Iterable[AnyAttack] | None
    norm: str | None
    eps: float | str | None
    step_size: float | str | None
    batch_size: int | None
    seed: int | None
    sample: int | None
    device: str | torch.device | None
    pixel_range: tuple[float, float] | None
    mean: Any
    std: Any
    output: int | str | None
    alarms: bool | None


class CompareOptions(JudgeOptions, total=False):
    """Keywords of `compare`: those of `evaluate`, and a security curve's."""

    curve: Sequence[float | str] | None
    curve_attack: AnyAttack | None


def check_known(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """InputError if a keyword is not known."""
    known = [*known]
    for name in options:
        if name not in known:
            raise InputError(unknown_key(name, known))


class JudgeSettings(Section):
    """How to judge. A pixel unit is that of the images: 1 is white where they are in [0, 1].

    Attributes:
        protocol: ``quick``, ``paper``, ``standard``, or a YAML file of your own; see `load_protocol`. Default:
            ``paper`` to evaluate one model, ``standard`` to compare several.
        attacks: in place of a protocol: names of ``ATTACKS``, ``PGD-<steps>``, ``CW-<steps>``, ``art:Class`` of
            `art.attacks.evasion`, ``package.module:Class`` of your own; or ART's classes and objects, `Attack` classes
            and objects, `functools.partial` of a class, or ``{"attack": any of these, option: value}``.
        norm: of the ball, ``Linf`` or ``L2``. Default: the protocol's, else Linf.
        eps: radius of the ball in pixel units, such as 8/255 (also as text). Default: the protocol's, if it has one.
        step_size: step of the PGD attacks, in pixel units. Default: 2.5 * eps / steps. FGSM steps by eps, and the
            standard AutoAttack by its own rule.
        batch_size: images per batch.
        seed: of all random draws. The same seed gives the same verdicts.
        sample: how many images to judge, drawn by class with ``seed``. Default: the protocol's number, or all if there
            are fewer; without such a number all.
        device: where the model runs. Default: where it is.
        pixel_range: ``(low, high)`` of a valid image, in pixel units. Attacks stay inside.
        mean, std: by channel, in pixel units, where the model wants ``(x - mean) / std`` and does not compute it: a
            list, array or tensor ``(C,)`` or ``(1, C, 1, 1)``, or a number for one channel.
        output: which part of what the model returns has the logits: an index, a key or an attribute, dotted where
            nested. Default: the part named ``logits``, or the only one that may be logits.
        alarms: whether to probe the model for what blinds attacks, and to report it in ``Report.alarms``.
        curve: radii of a security curve in pixel units; `compare` draws it. Default: none.
        curve_attack: its attack, given as one of ``attacks``.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    protocol: Annotated[Protocol, BeforeValidator(lambda given: load_protocol(given).loaded())]
    norm: Norm
    eps: Pixels
    step_size: Pixels | None = None
    batch_size: Count = 256
    seed: Annotated[int, BeforeValidator(check_seed)] = 0
    sample: Count | None = None
    device: Annotated[torch.device | None, BeforeValidator(check_device)] = None
    pixel_range: PixelRange = (0.0, 1.0)
    mean: PerChannel | None = None
    std: PerChannel | None = None
    output: Output = None
    alarms: bool = True
    curve: Annotated[tuple[_RadiusOfCurve, ...], BeforeValidator(radii_of)] = ()
    curve_attack: Annotated[Attack, BeforeValidator(_one_attack)] = make_attack("PGD-20")

    @classmethod
    def of(cls, options: Mapping[str, Any], *, protocol: str = "paper", **otherwise: Any) -> Self:
        """The settings that a user's keywords stand for.

        Args:
            options: see `JudgeOptions`; None is the same as not given.
            protocol: the default one.
            otherwise: values of fields that neither ``options`` nor the protocol has.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if "attacks" in given:
            if (named := given.get("protocol")) is not None:
                name = named.name if isinstance(named, Protocol) else os.fspath(named)
                raise InputError(f"protocol={name!r} and attacks are given; give one of them")
            how = Protocol(name="custom", version=1, attacks=given.pop("attacks"))
        else:
            how = load_protocol(given.get("protocol", protocol))
        of_protocol = {name: getattr(how, name) for name in ("norm", "eps", "output") if getattr(how, name) is not None}
        fields = {"norm": "Linf", **otherwise, **of_protocol, **given, "protocol": how}
        if fields.get("eps") is None:
            raise InputError("eps is missing; give the radius in pixel units, such as 8/255")
        return cls(**{name: value for name, value in fields.items() if value is not None})

    @property
    def attacks(self) -> tuple[Attack, ...]:
        return self.protocol.attacks

    def at(self, eps: float, attack: Attack) -> Self:
        """The settings of one point of a security curve: one attack, one radius, no alarms."""
        custom = Protocol(name="custom", version=1, attacks=(attack,))
        return self.model_copy(update={"protocol": custom, "eps": eps, "alarms": False})

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        for attack in (*self.attacks, self.curve_attack):
            attack.require()
        if not self.pixel_range[0] < self.pixel_range[1]:
            raise InputError(f"pixel_range={self.pixel_range} is empty; give (low, high) with low < high")
        if (self.mean is None) != (self.std is None):
            raise InputError(f"{'mean' if self.mean is None else 'std'} is missing; mean and std go together")
        if self.std is not None and any(each <= 0 for each in self.std):
            raise InputError(f"std={self.std} is not positive; give the standard deviation of each channel")
        if self.curve and not any(self.curve):
            raise InputError(f"curve={self.curve}: give a radius above 0, too; 0 is where images are clean")
        self._check_radii(math.inf)  # what the size of the images does not change
        return self

    def bind(self, data: Iterable[Any]) -> Task:
        """Collect the images, check the settings that depend on them, and draw the sample.

        Args:
            data: see `evaluate`.
        """
        with seeded(self.seed):  # a loader that shuffles draws from the global state
            images = collect(data, self.pixel_range)
        there, shape = len(images.pixels), images.pixels.shape[1:]
        if self.sample is not None and self.sample > there:
            raise InputError(f"sample={self.sample}: there are {there} images; give 1 to {there}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != shape[0]:
                raise InputError(f"{name}={list(values)} does not fit images of {shape[0]} channels; give {shape[0]}")
        self._check_radii(shape.numel())
        return Task(self, images.drawn(self.sample or min(self.protocol.sample or there, there), self.seed))

    def _check_radii(self, n_values: float) -> None:
        """Refuse a ball that holds all valid images of ``n_values`` values, and a radius in other units than theirs."""
        low, high = self.pixel_range
        widest = (high - low) * (math.sqrt(n_values) if self.norm == "L2" else 1)
        for eps, where in ((self.eps, ""), *((radius, "curve: ") for radius in self.curve if radius)):
            if eps > widest:
                meant = f"did you mean {eps:g}/255?" if self.pixel_range == (0.0, 1.0) and eps <= 255 else ""
                cure = meant or "give eps in the units of the pixels"
                of_images = f", whose images an L2 ball of {widest:.6g} holds all" if self.norm == "L2" else ""
                raise InputError(f"{where}eps={eps:g} is wider than pixel_range={self.pixel_range}{of_images}; {cure}")
            refuse_radius_of_other_pixels(eps, self.pixel_range)


class Task(NamedTuple):
    """Settings, and the images that they are bound to; the sample is already drawn."""

    settings: JudgeSettings
    images: Images

    def for_processes(self, processes: int | None, model: nn.Module) -> Task:
        """The task for processes to be started: they get the model on the CPU, so that the settings name its device."""
        if processes in (None, 1):
            return self
        check_network(model)
        device = self.settings.device or model_device(model)
        return self._replace(settings=self.settings.model_copy(update={"device": device}))


def takes(options: type[JudgeOptions]) -> Callable[[_F], _F]:
    """A decorator that shows a function's ``**options`` in its signature and explains them in its docstring."""

    def decorated(function: _F) -> _F:
        signature = inspect.signature(function)
        parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        for name, kind in options.__annotations__.items():
            field = JudgeSettings.model_fields.get(name)
            default = None if field is None or field.is_required() else field.default
            kind = getattr(kind, "__forward_arg__", kind)  # TypedDict wraps the text of an annotation
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        described = inspect.cleandoc(JudgeSettings.__doc__ or "").partition("Attributes:\n")[2]
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{described}\n"
        return function

    return decorated
