"""Logs of runs in the trackers that people use already; each needs its own package, an extra of this one."""

from .base import Tracker
from .mlflow import MLflow
from .tensorboard import TensorBoard
from .wandb import WandB

#: What ``pwoa prune --log`` may name: trackers, each made with the folder that its files go to.
TRACKERS: dict[str, type[Tracker]] = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": WandB}

__all__ = ["TRACKERS", "MLflow", "TensorBoard", "Tracker", "WandB"]
