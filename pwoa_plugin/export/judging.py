"""How robust what ships is, by the attacks that a file allows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal, Unpack

from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from pydantic import JsonValue
from torch import Tensor, nn

from .._checked import Record
from .._digest import digest_of
from ..pages.text import interval_text, percent
from ..robustness import Attack, AttackRun, AttackSettings, JudgeSettings, Protocol, Report, make_attack, make_estimator
from ..robustness.attacks.base import OnProgress
from ..robustness.estimator import Logits
from ..robustness.evaluation import judge_task
from ..robustness.settings import JudgeOptions, Task
from .agreement import Agreement, compared

How = Literal["same answers", "white box", "transfer and Square"]


class Transferred(Attack):
    """Another attack, run on a network that gives gradients; the network under judgement only answers its images.

    Args:
        attack: to be run.
        network: the one with gradients.
        settings: how both are judged: normalisation and the place of the logits.
    """

    black_box = True

    def __init__(self, attack: Attack, network: nn.Module, settings: JudgeSettings) -> None:
        super().__init__(name=f"{attack.name}, transferred")
        self.attack, self.network = attack, network
        self.packages, self.bounded = attack.packages, attack.bounded
        self._view = Logits(network, _normalisation(settings), settings.output)

    def _estimator(self, shape: Iterable[int], settings: AttackSettings) -> PyTorchClassifier:
        return make_estimator(
            self._view, n_classes=settings.n_classes, input_shape=tuple(shape), pixel_range=settings.pixel_range
        )

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        return self.attack.build(self._estimator(estimator.input_shape, settings), settings)

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        # Inside: a reader must not take it for the attack itself, which AutoAttack's parameters would make it do.
        return {"transferred": "from the float network", "attack": self.attack.parameters(settings)}

    @property
    def code(self) -> str:
        return f"{self.attack.code} {digest_of(self.network)}"

    def run(
        self,
        estimator: PyTorchClassifier,
        images: Tensor,
        labels: Tensor,
        settings: AttackSettings,
        on_progress: OnProgress | None = None,
    ) -> AttackRun:
        inner = self._estimator(images.shape[1:], settings)
        found = self.attack.run(inner, images, labels, settings, on_progress)
        return AttackRun(found.images, found.notes)  # which part fooled the float network says nothing here


class Shipped(Record):
    """How robust a file is, and how that was found.

    Attributes:
        how: ``same answers``: the network was attacked, and the file answers its images as the network does.
            ``white box``: the file itself was attacked, with its gradients. ``transfer and Square``: the file gives no
            gradient; it was shown the adversarial images of the float network, and attacked by its logits alone.
        clean: the two on clean images.
        attacked: the two on the images that the attacks found on the network; None where the file itself was judged.
        network: what `Report.to_dict` gives of the float network.
        file: the same of the file, where it was judged itself; else None.
    """

    how: How
    clean: Agreement
    attacked: Agreement | None = None
    network: dict[str, JsonValue]
    file: dict[str, JsonValue] | None = None

    @property
    def judged(self) -> Report:
        """The report that speaks about the file."""
        return Report.from_dict(self.network if self.file is None else self.file)

    @property
    def own(self) -> Report | None:
        """The figures that are the file's own; None where its answers are not all the network's."""
        alike = [each for each in (self.clean, self.attacked) if each is not None]
        is_own = self.how != "same answers" or all(each.same == each.images for each in alike)
        return self.judged if is_own else None

    @property
    def sentences(self) -> list[str]:
        """What was found, and what it may be taken for."""
        report, before = self.judged, Report.from_dict(self.network)
        worst = report.worst_case
        figure = f"{percent(worst.accuracy)} ({interval_text(worst.low, worst.high)}) of {report.config}"
        said = [f"Beside the network, on clean images, the file answers {self.clean}."]
        if self.how == "same answers":
            assert self.attacked is not None
            said.append(f"On the images that the attacks found on the network: {self.attacked}.")
            if self.own is not None:
                said.append(f"The network's figures are therefore the file's: robust on {figure}.")
            else:
                said.append(f"The network's figures (robust on {figure}) are therefore not quite the file's.")
        elif self.how == "white box":
            said.append(f"The file itself was attacked, with its gradients: robust on {figure}.")
        else:
            said.append(
                f"Not a white-box figure: the file gives no gradient. It withstood Square, which asks the file itself, "
                f"and the images that attacks found on the float network, on {figure}. An attack with gradients "
                f"through the rounding may find more. The float network, attacked with its gradients and by the same "
                f"black-box attacks, is robust on {percent(before.worst_case.accuracy)} of the same images."
            )
        return said


def judge_exported(
    network: nn.Module,
    file: nn.Module,
    data: Iterable[Any],
    *,
    how: How = "same answers",
    queries: int = 5000,
    state: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Unpack[JudgeOptions],
) -> Shipped:
    """Judge a file beside the network that it was made of.

    Args:
        network: the float network; attacked with its gradients.
        file: as `Format.read` gives it, such as an `ONNXNetwork`.
        data: images and labels; see `pwoa_plugin.evaluate`.
        how: see `Shipped`: ``transfer and Square`` for a quantized file, ``white box`` for one with other weights
            and gradients.
        queries: of Square, for each image, where ``options`` name no attack without gradients.
        state, progress, options: see `pwoa_plugin.evaluate`.

    Raises:
        ValueError: as `evaluate` does.
    """
    task = JudgeSettings.of(options).bind(data)
    return judge_exported_task(network, file, task, how=how, queries=queries, state=state, progress=progress)


def judge_exported_task(
    network: nn.Module,
    file: nn.Module,
    task: Task,
    *,
    how: How,
    queries: int = 5000,
    state: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Shipped:
    """See `judge_exported`."""
    settings, images = task

    def agreement(x: Tensor) -> Agreement:
        one, other = (Logits(each, _normalisation(settings), settings.output) for each in (network, file))
        return compared(one, other, x, batch_size=settings.batch_size)

    clean = agreement(images.pixels)
    of_network, of_file = settings, settings
    if how == "transfer and Square":
        white = [attack for attack in settings.attacks if not attack.black_box]
        black = [attack for attack in settings.attacks if attack.black_box]
        black = black or [make_attack("Square", {"queries": queries})]
        transferred = [Transferred(attack, network, settings) for attack in white]
        # The black-box attacks run on both: else what is stronger than the others would seem to be int8's loss.
        of_network = _with(settings, f"{settings.protocol.name}-and-square", [*white, *black])
        of_file = _with(settings, "transfer-and-square", [*transferred, *black]).model_copy(update={"alarms": False})
    report = judge_task(network, Task(of_network, images), state=state, progress=progress and "network")
    if how == "same answers":
        assert report.adversarial is not None
        return Shipped(how=how, clean=clean, attacked=agreement(report.adversarial), network=report.to_dict())
    own = judge_task(file, Task(of_file, images), state=state, progress=progress and "file")
    return Shipped(how=how, clean=clean, network=report.to_dict(), file=own.to_dict())


def _with(settings: JudgeSettings, name: str, attacks: Iterable[Attack]) -> JudgeSettings:
    return settings.model_copy(update={"protocol": Protocol(name=name, version=1, attacks=tuple(attacks))})


def _normalisation(settings: JudgeSettings) -> Any:
    return None if settings.mean is None or settings.std is None else (settings.mean, settings.std)
