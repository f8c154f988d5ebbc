"""How an unknown model's weight becomes a decay, as far as its name and its values determine it.

A name suggests readings: `log_…` a logarithm, `…_logit` a logit, `A` a rate per unit of time that needs a step.
Values rule readings out: a rate is positive, |λ̄| is below 1, and a layer remembers for more than a step or two. A
reading is returned only where exactly one is left; otherwise the reason is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from ssmdiag.families.interface import Tensor
from ssmdiag.recurrence.maps import MAPS

Domain = Literal["continuous", "rate", "discrete"]

SHORTEST, LONGEST = math.log(2) / 3, math.log(2) / 1e7
"""Rates, in nats per step, between which a layer's median mode is credible: half-lives of 3 and of 10⁷ steps."""
LARGEST_STEP = 0.5
"""A step Δ stored directly is smaller; the softplus of a positive weight is larger."""

_WORD = r"(?<![a-z0-9]){}(?![a-z0-9])"


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile(_WORD.format(f"(?:{'|'.join(alternatives)})"), re.IGNORECASE)


LOG = re.compile(r"(?<![a-z])log(?!i)|log(?![a-z])|(?<=[a-z])Log", re.IGNORECASE)
LOGIT = re.compile(r"logit", re.IGNORECASE)
RAW = _words("raw", "unconstrained", "param", "params", "inv", "inverse")
"""Words for a weight before some function, which they do not name, turns it into the named quantity."""
MATRIX = _words(
    "a", "ssm_?a", "a_?re", "a_?real", "a_?diag", "lambda", "lambda_?re", "lambda_?real", "lam", "eig[a-z]*"
)
"""Words for a rate per unit of time, as in a continuous system."""
RATE = _words("nu", "rate", "rates", "decay_?rates?", "neg_?re", "neg_?real")
FACTOR = _words("poles?", "radius", "radii", "retention", "forget", "forget_?gate", "f_?gate", "lambda_?bar")
"""λ̄ itself."""
DECAY = _words("decay", "decays", "time_?decay")
"""Words that mean a rate in some models, a factor in others."""
REMAINDER = _words("alpha", "leak", "leaky?_?rate", "damp[a-z]*")
"""Words that in some models mean how much a step takes in, in others how much it keeps."""
TIME = _words("tau", "taus", "time_?const[a-z]*", "time_?scales?", "half_?li[a-z]*")
NOT_A_DECAY = _words(
    "lambda_?params?", "reg[a-z]*", "ridge", "l1", "l2", "penalt[a-z]*", "weight_?decay", "temp[a-z]*", "dropout", "eps"
)
"""Regularisers and other small tensors whose names resemble a decay's."""
STEP = _words("dt", "delta", "step", "steps", "step_?size")
FREQUENCY = _words("theta", "omega", "freq[a-z]*", "imag", "im", "phase", "phi", "angles?", "a_?imag?", "rotation")
PROJECTION = re.compile(r"proj|lora|conv|norm|embed|mlp|(?<![a-z])w\d|attn|query|key|value(?!$)", re.IGNORECASE)
STEERS = _words("(?:dt|delta|a|alpha|decay|time_decay|forget|f|gk|recurren[a-z]*)_?(?:proj|gate|lora|w1|w2)[a-z0-9_]*")
"""Weights through which the input changes the decay."""
DECAYS = (MATRIX, RATE, FACTOR, DECAY, REMAINDER, TIME, NOT_A_DECAY)


@dataclass(frozen=True)
class Reading:
    """One way to turn a weight into a decay."""

    map: str
    domain: Domain


@dataclass(frozen=True)
class StepReading:
    """One way to turn a weight into a step Δ."""

    map: str
    selective: bool
    """Whether it is the bias of a step that depends on the input."""


class UnclearError(Exception):
    """A weight whose name and values allow several readings, or none; the message says which."""


def is_decay(name: str) -> bool:
    """Whether a name is that of a decay, or of something easily mistaken for one."""
    return any(kind.search(_noun(name)) for kind in DECAYS)


def read_step(name: str, values: Tensor, *, bias: bool) -> StepReading:
    """Return how a step is read. Raises UnclearError where its name and values do not determine it."""
    if LOG.search(name) and not bias:
        return StepReading("exp", selective=False)
    if (bias or re.search(r"bias", name, re.IGNORECASE)) and re.search(r"dt|delta", name, re.IGNORECASE):
        return StepReading("softplus", selective=True)
    if not bias and not RAW.search(name) and bool((values > 0).all()) and float(values.max()) < LARGEST_STEP:
        return StepReading("none", selective=False)
    raise UnclearError("a step Δ through exp, softplus or sigmoid: its name does not say")


def read_decay(name: str, values: Tensor, *, bias: bool, step: bool, turns: bool) -> Reading:
    """Return how a real weight is read as a decay. Raises UnclearError where its name and values do not determine it.

    Parameters
    ----------
    values
        All finite values, over all layers.
    bias
        Whether it is the bias of a gate that depends on the input.
    step
        Whether there is a step Δ beside it.
    turns
        Whether there is a frequency beside it.
    """
    noun = _noun(name)
    if NOT_A_DECAY.search(noun):
        raise UnclearError("a regulariser or the like by its name, and no decay")
    if REMAINDER.search(noun):
        raise UnclearError("by its name what a step keeps of the state in some models, what it adds in others")
    if bias and not FACTOR.search(noun):
        raise UnclearError("the bias of a gate; its name does not say through which function")
    if TIME.search(noun):
        raise UnclearError("a time constant by its name, for which there is no map")
    if RAW.search(name) and not (MATRIX.search(noun) and step and re.search("raw", name, re.IGNORECASE)):
        raise UnclearError("a raw weight by its name; it does not say through which function")
    if step:
        return _continuous(name, noun, values, bias=bias)
    if MATRIX.search(noun) and not FACTOR.search(noun):
        raise UnclearError("a rate per unit of time by its name, but no step Δ beside it can be read")
    return _per_step(name, noun, values, bias=bias, turns=turns)


def _continuous(name: str, noun: str, values: Tensor, *, bias: bool) -> Reading:
    negative, positive = bool((values < 0).all()), bool((values > 0).any())
    if FACTOR.search(noun) or LOGIT.search(name) or bias:
        raise UnclearError("a factor per step by its name, but there is a step Δ beside it")
    if LOG.search(name):
        if MATRIX.search(noun) or RATE.search(noun) or positive:
            return Reading("exp", "continuous")
        raise UnclearError("negative throughout: the logarithm of a rate, or of a factor λ̄ = e^w?")
    if RAW.search(name):
        return Reading("softplus", "continuous")
    if negative:
        return Reading("direct", "continuous")
    if not bool((values < 0).any()):
        raise UnclearError("positive throughout: a rate, or the stiffness of an oscillator?")
    raise UnclearError("of both signs, so not a rate itself; its name does not say through which function")


def _per_step(name: str, noun: str, values: Tensor, *, bias: bool, turns: bool) -> Reading:
    if LOGIT.search(name) or bias:
        if RATE.search(noun) or MATRIX.search(noun):
            raise UnclearError("a logit by its name, which does not say of what")
        return Reading("sigmoid", "discrete")
    negative, positive = bool((values < 0).all()), bool((values > 0).all())
    within = positive and bool((values < 1).all())
    readings: list[Reading] = []
    if LOG.search(name):
        if not FACTOR.search(noun):
            readings.append(Reading("exp", "rate"))
        if negative and not RATE.search(noun):
            readings.append(Reading("direct", "rate"))
        if RATE.search(noun):
            return readings[0]
    elif turns and re.fullmatch(r"(?i)nu", noun) and not positive:
        return Reading("exp", "rate")  # the polar form of the LRU: ν and θ, λ̄ = exp(−e^ν + iθ)
    elif within:
        readings += [] if RATE.search(noun) else [Reading("none", "discrete")]
        if re.search(r"time_?decay", noun, re.IGNORECASE):
            return readings[0]  # RWKV's is a logarithm of both signs, except where it was made λ̄
        readings += [] if FACTOR.search(noun) else [Reading("none", "rate")]
    elif positive:
        raise UnclearError("positive, and above 1 too: neither a factor λ̄ nor a rate itself")
    elif negative:
        readings = [Reading("direct", "rate"), Reading("exp", "rate"), Reading("softplus", "rate")]
    else:
        raise UnclearError("of both signs: through exp, softplus or sigmoid? Its name does not say")
    credible = [reading for reading in readings if _is_credible(reading, values)]
    if len(credible) == 1:
        return credible[0]
    if not credible:
        raise UnclearError("as a decay it would leave nothing after a step or two, or never decay")
    ways = " or ".join(f"{reading.map} ({reading.domain})" for reading in credible)
    raise UnclearError(f"through {ways}? Neither its name nor its values say")


def _is_credible(reading: Reading, values: Tensor) -> bool:
    """Whether a layer with this decay has a credible median memory."""
    middle = MAPS[reading.map](values.median())
    rate = -middle.log() if reading.domain == "discrete" else middle
    return LONGEST <= float(rate) <= SHORTEST


def read_poles(values: Tensor, *, step: bool) -> Reading:
    """Return how complex eigenvalues in one tensor are read. Raises UnclearError where they fit neither form."""
    left, inside = bool((values.real < 0).all()), bool((values.abs() < 1).all())
    if step and left:
        return Reading("direct", "continuous")
    if inside and not step and not left:
        return Reading("none", "discrete")
    if left and inside:
        raise UnclearError("complex, within the unit circle and left of 0: λ̄, or λ with a step that is not stored?")
    raise UnclearError("complex, and neither within the unit circle nor left of 0")


def _noun(name: str) -> str:
    """Return a name without the words for a logarithm or a logit.

    >>> _noun("A_log"), _noun("log_lambda"), _noun("decay_logit"), _noun("logDecay")
    ('A', 'lambda', 'decay', 'Decay')
    """
    return re.sub(r"(?i)_*logit_*|(?<![a-z])log_?|_?log(?![a-z])", "", name).strip("_") or name
