"""Random perturbations of the images that teacher and student see.

These are random draws, not adversarial examples: they use no gradient, no label and no network. They transfer the
teacher's robustness because they compare both networks where attacks go, which natural images alone do not cover.

A new kind is one class here and one line in ``PERTURBATIONS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from .._section import Pixels, Section, check_options, key_of
from ..errors import InputError

RADIUS_IMAGES = 512  # enough for `largest_agreeing_radius`
_CHUNK = 128  # images in one forward
_RESOLUTION = 256  # steps of the pixel range
_REFERENCE_SIDE = 28  # pixels: side of the images that `scales` are for


class Perturbation(ABC):
    """``x + radius * sqrt(u) * p``, clamped to the pixel range; ``u`` uniform in [0, 1) per image.

    The square root puts most draws near the full radius, and some at every smaller one.

    Args:
        radius: largest change of a pixel, in pixel units (those of ``pixel_range``), at least 0.
        pixel_range: ``(low, high)`` of a valid image.
    """

    def __init__(self, *, radius: float, pixel_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self.radius = float(radius)
        self.pixel_range = (float(pixel_range[0]), float(pixel_range[1]))

    @abstractmethod
    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The pattern ``p``, shaped as ``x`` ``(N, C, H, W)``, of which only shape, device and dtype matter."""

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Perturbed copy of ``x`` ``(N, C, H, W)``, within ``pixel_range``; the generator is on its device."""
        if self.radius == 0:
            return x
        size = (len(x),) + (1,) * (x.dim() - 1)
        u = torch.rand(size, generator=generator, device=x.device, dtype=x.dtype)
        p = self.direction(x, generator)
        return torch.addcmul(x, u.sqrt_().mul_(self.radius), p).clamp_(*self.pixel_range)


class Identity(Perturbation):
    """No perturbation: the paper's own setting, natural images only."""

    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.zeros_like(x)


class UniformNoise(Perturbation):
    """Independent uniform noise in [-1, 1] on every pixel."""

    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype).mul_(2).sub_(1)


class Gaussian(Perturbation):
    """Independent standard normal noise on every pixel; ``radius`` is its standard deviation."""

    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


class Sign(Perturbation):
    """An independent random sign on every pixel: the corners of the L-infinity ball."""

    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _random_signs(x, generator)


class BlockSign(Perturbation):
    """Random signs on a grid of square cells, the cell's side drawn per image from ``scales``.

    Args:
        scales: cell sides in pixels for images of 28 to 55 pixels; for larger images, sides above 1 grow with them.
            None: ``default_scales``.
    """

    default_scales: ClassVar[tuple[int, ...]] = (2, 4, 7, 14)

    def __init__(
        self, *, radius: float, pixel_range: tuple[float, float] = (0.0, 1.0), scales: Sequence[int] | None = None
    ) -> None:
        super().__init__(radius=radius, pixel_range=pixel_range)
        self.scales = self.default_scales if scales is None else tuple(scales)
        if not self.scales or min(self.scales) < 1:
            raise InputError(f"scales={scales} must name at least one cell side of 1 pixel or more")

    def cells(self, height: int, width: int) -> list[tuple[int, int]]:
        """``(height, width)`` of every kind of cell, in pixels."""
        grow = max(1, min(height, width) // _REFERENCE_SIDE)
        return [(s, s) if s == 1 else (s * grow, s * grow) for s in self.scales]

    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _sign_grid(x, _cells_of_pixels(self.cells(x.shape[2], x.shape[3]), x), generator)


class Patterns(BlockSign):
    """Signs with the spatial structure that attacks have (the default).

    Two draws are spliced along a random region with a smooth outline: an upsampled ``4 x 4`` field of uniforms, against
    a random threshold. Each draw is a grid of random signs with cells of a random scale, or one-pixel stripes across
    the whole image, as Square attack begins with. Signs are independent per channel.
    """

    default_scales = (1, 2, 4, 7, 14)

    def cells(self, height: int, width: int) -> list[tuple[int, int]]:
        return [*super().cells(height, width), (height, 1), (1, width)]

    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, _, height, width = x.shape
        of_cells = _cells_of_pixels(self.cells(height, width), x)
        field = torch.rand((n, 4, 4), generator=generator, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            field = _interpolation(height, x.device) @ field @ _interpolation(width, x.device).t()  # bilinear
        threshold = torch.rand((n, 1, 1), generator=generator, device=x.device)
        inside = (field > threshold).unsqueeze(1)
        return torch.where(inside, _sign_grid(x, of_cells, generator), _sign_grid(x, of_cells, generator))


def _interpolation(size: int, device: torch.device) -> Tensor:
    """``(size, 4)``: weights of 4 points in each of ``size`` (`F.interpolate`, linear, corners not aligned)."""
    points = torch.eye(4, device=device).unsqueeze(0)
    return F.interpolate(points, size=size, mode="linear", align_corners=False)[0].t()


def _random_signs(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """-1 or 1, shaped as ``x``; each draw of the generator gives 31 of them."""
    shifts = torch.arange(31, dtype=torch.int32, device=x.device)
    words = torch.empty((-(-x.numel() // 31), 1), dtype=torch.int32, device=x.device).random_(generator=generator)
    bits = (words >> shifts).bitwise_and_(1).flatten()[: x.numel()]
    return bits.view(x.shape).to(x.dtype).mul_(2).sub_(1)


def _cells_of_pixels(cells: list[tuple[int, int]], x: Tensor) -> Tensor:
    """``(kinds, 1, height * width)`` int64: the cell that each pixel of ``x`` is in, for every ``(height, width)``."""
    height, width = x.shape[2:]
    size = torch.tensor(cells, device=x.device)
    row = torch.arange(height, device=x.device) // size[:, :1]
    column = torch.arange(width, device=x.device) // size[:, 1:]
    return (row[:, :, None] * width + column[:, None, :]).view(len(cells), 1, height * width)


def _sign_grid(x: Tensor, of_cells: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random signs shaped as ``x``, constant on cells whose size is drawn per image from those of ``of_cells``."""
    index = of_cells[torch.randint(len(of_cells), (len(x),), generator=generator, device=x.device)]
    return _random_signs(x, generator).flatten(2).gather(2, index.expand(-1, x.shape[1], -1)).view(x.shape)


PERTURBATIONS: dict[str, type[Perturbation]] = {
    "patterns": Patterns,
    "sign": Sign,
    "block": BlockSign,
    "uniform": UniformNoise,
    "gaussian": Gaussian,
    "none": Identity,
}


class PerturbationConfig(Section):
    """The random perturbation of the images that teacher and student see.

    Attributes:
        kind: a key of ``PERTURBATIONS``: ``patterns``, ``sign``, ``block``, ``uniform``, ``gaussian`` or ``none`` (the
            paper).
        radius: in pixel units. None: 1.5 ``eps`` if ``eps`` is set; otherwise the largest radius at which the teacher
            keeps ``agreement`` of its own predictions.
        agreement: see ``radius``.
        options: of the kind, such as ``scales`` of ``patterns`` and ``block``.
    """

    kind: Annotated[str, key_of(PERTURBATIONS)] = "patterns"
    radius: Pixels | None = Field(default=None, ge=0)
    agreement: float = Field(default=0.95, gt=0, lt=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        check_options(PERTURBATIONS[self.kind], self.options, radius=0.0, pixel_range=(0.0, 1.0))
        return self

    def make(self, radius: float, pixel_range: tuple[float, float]) -> Perturbation:
        """The perturbation of this kind, with its options."""
        return PERTURBATIONS[self.kind](radius=radius, pixel_range=pixel_range, **self.options)

    def known_radius(self, eps: float | None, pixel_range: tuple[float, float]) -> float | None:
        """The radius as set or by ``eps``, at most the whole pixel range; None if the network must be tried."""
        if self.kind == "none":
            return 0.0
        by_eps = None if eps is None else min(1.5 * eps, pixel_range[1] - pixel_range[0])
        return by_eps if self.radius is None else self.radius


@torch.no_grad()
def largest_agreeing_radius(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    config: PerturbationConfig,
    *,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> float:
    """The largest radius at which ``model`` keeps ``config.agreement`` of its own predictions, in pixel units.

    By bisection to a 256th of the pixel range, with the same random draws at every radius; 0 if even the smallest
    changes too many predictions.

    Args:
        model: images to logits ``(N, classes)``: a classifier in eval mode, on the images' device.
        images: ``(N, C, H, W)`` in ``pixel_range``.
        config: kind and options of the perturbation, and the agreement.
        pixel_range: of a valid image; its width is the largest radius.
        seed: of the draws.
    """
    chunks = images.split(_CHUNK)
    clean = torch.cat([model(chunk).argmax(1) for chunk in chunks])
    width = pixel_range[1] - pixel_range[0]

    def agrees(step: int) -> bool:
        perturb = config.make(step * width / _RESOLUTION, pixel_range)
        generator = torch.Generator(images.device).manual_seed(seed)
        answers = torch.cat([model(perturb(chunk, generator)).argmax(1) for chunk in chunks])
        return bool((answers == clean).float().mean() >= config.agreement)

    if agrees(_RESOLUTION):
        return width
    good, bad = 0, _RESOLUTION
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if agrees(middle) else (good, middle)
    return good * width / _RESOLUTION
