"""Logs for MLflow."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .base import Tracker

_MOST_PARAMETERS = 100  # in one call of MLflow


class MLflow(Tracker):
    """A run in MLflow's tracking store; ``pip install "pwoa-plugin[mlflow]"``.

    Args:
        folder: of ``mlflow.id``, by which a resumed run continues its log.
        uri: of the store, as ``sqlite:///mlflow.db``; None: ``MLFLOW_TRACKING_URI``, else MLflow's own default.
        experiment: its name; made if it is not there.
    """

    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"
    _client: Any = None
    _id = ""

    def __init__(self, folder: str | os.PathLike[str], *, uri: str | None = None, experiment: str = "pwoa") -> None:
        super().__init__(folder)
        self._uri, self._experiment = uri, experiment

    def open(self, config: Mapping[str, Any], step: int) -> int:
        mlflow = importlib.import_module("mlflow")
        self._client = client = mlflow.MlflowClient(tracking_uri=self._uri)
        found = client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else client.create_experiment(self._experiment)
        self._id = (step and self.kept_id) or client.create_run(experiment).info.run_id
        self.keep_id(self._id)
        client.update_run(self._id, status="RUNNING")
        known = client.get_run(self._id).data.params
        new = [mlflow.entities.Param(name, str(value)) for name, value in config.items() if name not in known]
        for start in range(0, len(new), _MOST_PARAMETERS):
            client.log_batch(self._id, params=new[start : start + _MOST_PARAMETERS])
        return max((metric.step for metric in client.get_metric_history(self._id, "loss")), default=0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        entities, now = importlib.import_module("mlflow.entities"), int(1000 * time.time())
        metrics = [entities.Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def image(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._id, str(path), name.rpartition("/")[0])

    def close(self) -> None:
        self._client.set_terminated(self._id)
