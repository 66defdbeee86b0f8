"""What an alarm is, and what to do about each kind."""

from __future__ import annotations

from types import MappingProxyType

from .._checked import Record

__all__ = ["Alarm", "make_alarm", "rises_with_eps"]

_DO = MappingProxyType(
    {
        "stochastic-output": "Switch dropout and noise off in eval mode, or attack the average over draws: one draw at "
        "a time hides weakness",
        "probabilities": "Take the softmax off the model, or return its logarithm",
        "saturated-logits": "Divide the logits by a constant, which changes no answer, and judge again",
        "no-gradients": "Take no_grad, detach or numpy out of the forward; until then only black-box attacks can judge",
        "zero-gradients": "Look for rounding, thresholds or saturated logits in the model; rely on black-box attacks "
        "(Square) until gradients flow, or attack through a smooth substitute for the step that has none (BPDA)",
        "survives-any-eps": "PGD does not find what is there: trust none of the gradient attacks on this model",
        "one-class": "A model that answers one class to everything withstands every attack on it: look at the accuracy "
        "of each class before its robustness",
        "rises-with-eps": "The attack gets stuck: use more steps and restarts, and AutoAttack",
        "more-steps-weaker": "The loss misleads the attack: look at the gradients, and use attacks on other losses "
        "(CW, AutoAttack)",
        "not-converged": "Use more steps, and AutoAttack, until more steps fool it on no more images",
        "margin-stronger": "The cross-entropy misleads, as it does on logits that are very flat or very steep: "
        "multiply or divide the logits by a constant, which changes no answer, and judge again; until then rely on "
        "CW and AutoAttack",
        "black-box-stronger": "Gradients mislead on this model: rely on the black-box figure, and run it with more "
        "queries, which will lower it further",
    }
)


class Alarm(Record):
    """One reason not to believe a robust accuracy.

    Attributes:
        name: of the kind of alarm.
        saw: what was seen, with its figure.
        do: what to do about it.
    """

    name: str
    saw: str
    do: str

    def __str__(self) -> str:
        return f"{self.saw}. {self.do}."


def make_alarm(name: str, saw: str) -> Alarm:
    """An alarm of a known kind, with its cure."""
    return Alarm(name=name, saw=saw, do=_DO[name])


def rises_with_eps(attack: str, less: float, more: float, rise: int, n: int) -> Alarm:
    """The alarm that a ball holds fewer adversarial images than a smaller one inside it."""
    return make_alarm(
        "rises-with-eps",
        f"Under {attack}, {rise} of {n} images more are right at eps = {more:.4g} than at {less:.4g}, the radius of "
        "a ball inside it",
    )
