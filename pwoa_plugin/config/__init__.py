"""`PwoAConfig`, and the sections that it is composed of, each from beside the code that it configures."""

from .._section import ConfigError, Pixels, Section, as_section, fraction
from ..data.config import DataConfig
from ..method.adversarial import AdversarialConfig
from ..method.distillation import DistillationConfig
from ..method.hsic import HSICConfig
from ..method.optimizers import OptimizerConfig, ScheduleConfig
from ..method.perturbation import PerturbationConfig
from ..method.phases import ADMMConfig, GradualConfig
from ..models.config import ModelConfig
from .pwoa import PwoAConfig

__all__ = [
    "ADMMConfig",
    "AdversarialConfig",
    "ConfigError",
    "DataConfig",
    "DistillationConfig",
    "GradualConfig",
    "HSICConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PerturbationConfig",
    "Pixels",
    "PwoAConfig",
    "ScheduleConfig",
    "Section",
    "as_section",
    "fraction",
]
