"""What an alarm is; for each kind, what it says and what to do about it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from .._checked import Record

_KINDS = MappingProxyType(
    {
        "stochastic-output": (
            "Asked twice, the model gives different logits for the same images: up to {moved:.3g} apart, of "
            "{largest:.3g}",
            "Switch dropout and noise off in eval mode, or attack the average over draws: one draw at a time hides "
            "weakness",
        ),
        "batch-dependent": (
            "Asked again in other batches, in another order or one by one, the model gives other answers to {count} of "
            "{n} images, clean or attacked",
            "Take out of its forward what looks at the batch (BatchNorm in training mode), at order or number "
            "of calls, or draws at random; an image counts as right only if it is right in every look",
        ),
        "not-finite": (
            "For {count} of {n} images, clean or attacked, a logit is infinite or NaN, which counts as no answer",
            "Mend the overflow; in place of -inf for a class that cannot be, return a large negative number",
        ),
        "probabilities": (
            "The outputs are probabilities, not logits: losses on them have next to no gradient",
            "Take the softmax off the model, or return its logarithm",
        ),
        "saturated-logits": (
            "On {count} of {n} images the largest logit leads by more than {lead:g} (median lead {median:.3g}): the "
            "cross-entropy has no gradient left in float32{squared}",
            "Divide the logits by a constant, which changes no answer, and judge again",
        ),
        "no-gradients": (
            "The logits carry no gradient to the images at all",
            "Take no_grad, detach or numpy out of the forward; until then only black-box attacks can judge",
        ),
        "zero-gradients": (
            "On {count} of {n} images the {what} of the loss is exactly 0 in float32",
            "Look for rounding, thresholds or saturated logits in the model; rely on black-box attacks (Square) until "
            "gradients flow, or attack through a smooth substitute for the step that has none (BPDA)",
        ),
        "survives-any-eps": (
            "With every pixel free to take any value (PGD-20, eps = {eps:g}), {count} of {n} images are still right, "
            "where none can be",
            "PGD does not find what is there: trust none of the gradient attacks on this model",
        ),
        "one-class": (
            "The model answers {answer} to each of {n} images of several classes",
            "A model that answers one class to everything withstands every attack on it: look at the accuracy of each "
            "class before its robustness",
        ),
        "rises-with-eps": (
            "Under {attack}, {count} of {n} images more are right at eps = {more:.4g} than at {less:.4g}, the radius "
            "of a ball inside it",
            "The attack gets stuck: use more steps and restarts, and AutoAttack",
        ),
        "more-steps-weaker": (
            "{more} fools the model on {count} of {n} images fewer than {fewer}",
            "The loss misleads the attack: look at the gradients, and use attacks on other losses (CW, AutoAttack)",
        ),
        "not-converged": (
            "{more} fools the model on {count} of {n} images more than {fewer}",
            "Use more steps, and AutoAttack, until more steps fool it on no more images",
        ),
        "margin-stronger": (
            "{margin}, whose loss is the margin, fools the model on {count} of {n} images more than {entropy}",
            "The cross-entropy misleads, as it does on logits that are very flat or very steep: multiply or divide the "
            "logits by a constant, which changes no answer, and judge again; until then rely on CW and AutoAttack",
        ),
        "black-box-stronger": (
            "{black}, which sees no gradient, fools the model on {count} of {n} images that withstand {white}",
            "Gradients mislead on this model: rely on the black-box figure, and run it with more queries, which will "
            "lower it further",
        ),
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


def make_alarm(name: str, **figures: Any) -> Alarm:
    """An alarm of a kind; ``figures`` fill its text."""
    saw, do = _KINDS[name]
    return Alarm(name=name, saw=saw.format(**figures), do=do)
