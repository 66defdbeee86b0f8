"""`TrainingConfig`: the sections of the method, checked against each other."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .._devices import check_device
from .._logits import Output
from .._pixels import PixelRange, check_radius
from .._random import seeded
from .._section import Names, Pixels, Section, key_of
from ..errors import InputError
from .adversarial import AdversarialConfig
from .allocation import ALLOCATIONS
from .batches import Batches
from .distillation import DistillationConfig
from .hsic import HSICConfig
from .optimizers import OptimizerConfig, ScheduleConfig
from .perturbation import PerturbationConfig
from .phases import ADMMConfig, GradualConfig, phase_lengths
from .sparsity import find_sparsity_set

_logger = logging.getLogger(__name__)

BATCH_SIZE = 128  # by default, where images are not few
_EPOCHS = 12
_TEMPERATURE_OF_FEW = 4.0  # kept more than 30 for every seed that 30 served worst: docs/ablations.md, few images
_SHARE = 0.25  # of the steps with HSIC and features: docs/ablations.md, a quarter of the steps
_LEAST_STEPS = 1500  # fewer cost robustness (docs/ablations.md, few images); 12 epochs of 20,000 images have 1,884


def default_epochs(per_epoch: int) -> int:
    """Epochs of a run that leaves ``epochs`` out: 12, or as many as give 1,500 steps of ``per_epoch`` a piece."""
    return max(_EPOCHS, math.ceil(_LEAST_STEPS / per_epoch))


class TrainingConfig(Section):
    """The options of a training run. Keyword-only; unknown keys are refused.

    Attributes:
        sparsity: share of the prunable weights to prune, in (0, 1): 0.9375 is 16x. None only for ``n:m``.
        train_loader: natural images: a DataLoader or another iterable of batches that can be read again, a Dataset, or
            ``(x, y)`` or ``x`` whole. ``x`` is ``(N, C, H, W)``: floats in ``pixel_range``, or uint8, which are scaled;
            ``y`` integers ``(N,)`` or one-hot, not needed if ``hsic.lambda_y`` is 0. See "What data may be" in
            docs/runs.md.
        granularity: ``unstructured``, ``filter``, ``channel``, ``column``, ``block`` (4x4), ``block:RxC``, or ``2:4``;
            or ``structured``: ``sparsity`` is then the share of channels to remove, by dependency group, with
            `PwoAGroupPruner` or ``pwoa prune``.
        allocation: ``lamp`` (default), ``erk``, ``global``, or ``uniform`` (the paper; default for ``structured``: the
            same share of channels in each group).
        include: names or patterns (``layer4.*``) of layers to prune; default: every convolution and linear layer.
        exclude: names or patterns of layers that stay dense and do not count in ``sparsity``.
        epochs: of the whole run: ADMM or gradual pruning, then fine-tuning. None: 12, or more if the images are few: as
            many as give 1,500 steps (at 128 images a batch, more than 12 below 16,000 images).
        batch_size: if ``train_loader`` is a Dataset or tensors: of all processes together. None: 128; below 512 images
            a quarter of them, at least 16, unless ``epochs`` is set.
        accumulate: compute the gradient of a batch in so many parts, one after the other: less memory.
        checkpoint: keep no activations inside the network's blocks, and compute them again for the gradient: less
            memory, about a third more time.
        compile: run teacher and student through ``torch.compile``, on a GPU as CUDA graphs; see docs/speed.md.
        optimizer, schedule: of all phases; ADMM may have its own.
        distillation, perturbation, hsic, admm, gradual: see their classes.
        adversarial: train on adversarial examples, see `AdversarialConfig`; None (the default): none is made.
        output: which part of what the network returns has the logits: an index, a key or an attribute, dotted where
            nested. None: the part named ``logits``, or the only one that may be logits.
        eps: radius of the attacks to resist, in pixel units; sets the perturbation's radius.
        pixel_range: ``(low, high)`` of a valid image. Normalisation by mean and std belongs in the model.
        seed: of everything random in a run.
        device: ``cuda``, ``cpu``...; None: the model's.
        autocast: ``bfloat16`` or ``float16`` mixed precision, or None.
        progress: whether to show a progress bar.
    """

    sparsity: float | None = None
    train_loader: Any = Field(default=None, repr=False, exclude=True)
    granularity: str = "unstructured"
    allocation: Annotated[str, key_of(ALLOCATIONS)] = "lamp"
    include: Names | None = None
    exclude: Names = ()
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    accumulate: int = Field(default=1, ge=1)
    checkpoint: bool = False
    compile: bool = False
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    distillation: DistillationConfig = Field(default_factory=DistillationConfig)
    perturbation: PerturbationConfig = Field(default_factory=PerturbationConfig)
    hsic: HSICConfig = Field(default_factory=HSICConfig)
    adversarial: AdversarialConfig | None = None
    admm: ADMMConfig = Field(default_factory=ADMMConfig)
    gradual: GradualConfig = Field(default_factory=GradualConfig)
    output: Output = None
    eps: Pixels | None = Field(default=None, gt=0)
    pixel_range: PixelRange = (0.0, 1.0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: str | None = None
    autocast: Literal["bfloat16", "float16"] | None = None
    progress: bool = True

    @model_validator(mode="before")
    @classmethod
    def _allocation_by_granularity(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(granularity := values.get("granularity"), str):
            return {"allocation": find_sparsity_set(granularity).default_allocation} | values
        return values

    @field_validator("sparsity")
    @classmethod
    def _inside(cls, sparsity: float | None) -> float | None:
        if sparsity is not None and not 0 < sparsity < 1:
            raise InputError(f"sparsity={sparsity} is outside (0, 1); 0.9375 prunes 15 weights in 16")
        return sparsity

    @field_validator("device", mode="before")
    @classmethod
    def _known_device(cls, device: Any) -> str | None:
        return None if device is None else str(check_device(device))

    @model_validator(mode="after")
    def _agree(self) -> TrainingConfig:
        sparsity_set = find_sparsity_set(self.granularity)
        density = sparsity_set.fixed_density
        if density is None and self.sparsity is None:
            raise InputError(f"sparsity is missing; give the share to prune with granularity={self.granularity!r}")
        if density is not None and self.sparsity is not None and abs(1 - density - self.sparsity) > 1e-9:
            raise InputError(
                f"sparsity={self.sparsity} contradicts granularity={self.granularity!r}, which prunes {1 - density:g}; "
                "leave sparsity out"
            )
        check_radius(self.eps, self.pixel_range)
        if self.adversarial is not None:
            self.adversarial.check(self.eps, self.pixel_range, self.epochs)
        always = self.adversarial is not None and self.adversarial.epochs is None and self.adversarial.weight > 0
        if not (self.distillation.wanted or self.hsic.wanted or always):
            raise InputError(
                "distillation, hsic: all weights are 0, and adversarial is not on in all epochs, so nothing is "
                "trained; set distillation.alpha, or adversarial without epochs"
            )
        if self.gradual.wanted and sparsity_set.one_cut:
            raise InputError(
                f"gradual: does not go with granularity={self.granularity!r}, which is reached in one cut; leave it out"
            )
        if self.hsic.gather and self.accumulate > 1:
            raise InputError("hsic.gather: does not go with accumulate; leave one of them out")
        if self.compile and self.checkpoint:
            raise InputError("compile: does not go with checkpoint; leave one of them out")
        lengths = {"admm.epochs": self.admm_epochs, "gradual.epochs": self.gradual_epochs}
        if self.epochs is not None and sum(lengths.values()) > self.epochs:
            given = " and ".join(f"{name}={length}" for name, length in lengths.items() if length)
            raise InputError(f"{given}: more than epochs={self.epochs}, which counts every phase; raise epochs")
        return self

    def batch_size_for(self, images: int) -> int:
        """Images in a batch, set or by default; a quarter of few images, so that an epoch has some steps."""
        if self.batch_size is not None:
            return self.batch_size
        return BATCH_SIZE if self.epochs is not None else min(BATCH_SIZE, max(16, images // 4))

    def with_length(self, batches: Batches) -> tuple[Self, int]:
        """This config with ``epochs``, and ``epochs``; InputError if ADMM and gradual pruning are set to be longer."""
        if self.epochs is not None:
            return self, self.epochs
        with seeded(self.seed):  # a source that does not tell its length is read
            per_epoch = len(batches)
        epochs, distillation = default_epochs(per_epoch), self.distillation
        if epochs > _EPOCHS and distillation.temperature is None:
            distillation = distillation.model_copy(update={"temperature": _TEMPERATURE_OF_FEW})
        _logger.info("epochs=%d of %d steps, distillation.temperature=%g", epochs, per_epoch, distillation.tau)
        return type(self)(**dict(self) | {"epochs": epochs, "distillation": distillation}), epochs

    @property
    def default_share(self) -> float:
        """The share of the steps with HSIC and features where their sections leave it open; see `HSICConfig`."""
        used = {each.name for each in (self.optimizer, self.admm.optimizer) if each is not None}
        return _SHARE if used <= {"adam", "adamw"} else 1.0

    @property
    def admm_epochs(self) -> int:
        """Epochs of the ADMM phase, set or by default; of 12 while ``epochs`` is not known."""
        return self._lengths()[0]

    @property
    def gradual_epochs(self) -> int:
        """Epochs of the gradual phase, set or by default; of 12 while ``epochs`` is not known."""
        return self._lengths()[1]

    def _lengths(self) -> tuple[int, int]:
        one_cut = find_sparsity_set(self.granularity).one_cut
        return phase_lengths(self.epochs or _EPOCHS, self.admm, self.gradual, one_cut=one_cut)
