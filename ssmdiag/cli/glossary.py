"""The words of the reports, in plain words, each with one number as it is read: `ssmdiag explain TERM`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """One word of the reports."""

    name: str
    summary: str
    """One line for the list."""
    meaning: str
    reading: str
    """One number from a report, and what it says."""
    also: tuple[str, ...] = ()
    """Other words for it, or for something so near that it is explained here."""


TERMS = (
    Term(
        "half-life",
        "steps in which what is held falls to one half",
        "Each mode of a layer multiplies what it holds by a factor λ̄ at every step (a token, a sample). The "
        "half-life is the number of steps after which one half is left: log 2 / −log |λ̄|. The slowest mode of a "
        "layer sets how far back it can reach at all; the median says what most of it does.",
        "`half-life 153`: after 153 tokens one half is left, after 306 a quarter, after 1,530 a thousandth.",
        ("half life", "halflife", "half-lives"),
    ),
    Term(
        "time constant",
        "steps in which what is held falls to 1/e, 37 %",
        "The same as the half-life in other units: τ = −1 / log |λ̄| steps, 1.44 half-lives. Reports show the "
        "time constants of all modes as a strip, to compare with the context at one glance.",
        "`τ 10 … 1k`: the fastest modes keep 37 % for 10 steps, the slowest for 1,000.",
        ("tau", "τ", "timescale", "time scale"),
    ),
    Term(
        "margin",
        "distance of the slowest mode from the edge of stability",
        "1 − |λ̄| of the slowest mode: what it loses at each step. At 0 it never forgets; below 0 it grows, and "
        "the model blows up on a sequence that is long enough. Half-life and margin are two sides of one thing: a "
        "small margin is a long memory. It is a danger where training still drives it towards 0, which `ssmdiag "
        "compare RUN` sees.",
        "`margin 5.7e-4`: the slowest mode loses 0.057 % a step; its half-life is 0.69 / 5.7e-4 = 1,216 steps.",
        ("stability boundary", "boundary", "|λ̄|"),
    ),
    Term(
        "horizon",
        "lag by which 99 % of the kernel's energy has passed",
        "How an input acts on the output t steps later is the kernel K_t; its energy is the sum of K_t² over "
        "lags. The horizon is the lag by which 99 % of that has passed: what came earlier hardly acts any more. "
        "It weighs the modes by how much the output uses them, which half-lives alone do not.",
        "`horizon 4.4k` with a context of 512: inputs from the whole context still act on the output.",
        ("memory horizon", "energy"),
    ),
    Term(
        "kernel",
        "what an input contributes to the output, lag by lag",
        "The impulse response of a layer: K_t is what an input of 1 adds to the output t steps later. A layer "
        "whose decay does not depend on the input (S4, S5, LRU) has one, and all of its memory is in it. A "
        "selective layer (Mamba, RWKV-6, gated attention) has none; there the retention stands for it, the share "
        "of the state that is still there after t steps.",
        "`50, 90, 99 % of the energy have passed after 16, 67, 463 steps`: most of it acts at once, a rest for long.",
        ("memory kernel", "impulse response", "retention", "memory function"),
    ),
    Term(
        "law",
        "the curve that the kernel decays by",
        "exponential: a constant factor a step, so that a far input is gone. polynomial: a power of the lag, the "
        "heavy tail of long memory. truncated: a polynomial up to a lag, exponential after it. flat: no decay "
        "within the context. `exp. tail`, `exp. tails`, `exp. band`: no law holds over all lags, but from the "
        "named lag on one rate, a few, or a band of them decide. Undetermined: the data do not tell; nothing is "
        "guessed.",
        "`exp. band 162–4,096`: from lag 162 to 4,096 the modes of one band of rates decide how it fades.",
        (
            "decay law",
            "decay",
            "exponential",
            "polynomial",
            "truncated",
            "flat",
            "tail",
            "tails",
            "band",
            "exp. tail",
            "exp. tails",
            "exp. band",
            "undetermined",
        ),
    ),
    Term(
        "nominal",
        "with the gates at rest; inputs can change it",
        "In Mamba and its relatives the decay depends on the input. The weights alone say what it is while the "
        "gates are at rest, at their bias: the nominal point. On real text a channel may hold longer or forget "
        "sooner. `ssmdiag probe` measures that on a live model. Models whose decay is in the weights (S4, LRU, "
        "RetNet) are exact.",
        "`half-life 31 (nominal)`: 31 steps with the gates at rest; on a text it may be 10 or 300.",
        ("nominal point", "gates", "at rest", "selective", "exact", "operating point"),
    ),
    Term(
        "capacity",
        "how many past inputs can be rebuilt from the state",
        "A layer with N modes holds N numbers, so it cannot hold every past input. The capacity at a lag is how "
        "well the input from that long ago can be rebuilt from the state: 1 exactly, 0 not at all. Summed over "
        "lags it is at most N. The length is the farthest lag that is rebuilt to one half. Rounding the state "
        "(bfloat16, int8) takes some of it away; effective modes are those that are left.",
        "`length 97`: the input of 97 steps ago is rebuilt to one half; what lies further back blurs together.",
        ("memory capacity", "effective modes", "modes left", "held", "length", "reconstruction"),
    ),
    Term(
        "mode",
        "one decaying number, or a pair, in the state",
        "A linear recurrence is a sum of modes: each holds one (complex) number, multiplies it by its eigenvalue "
        "λ̄ at every step and adds the new input. |λ̄| says how fast it forgets, the angle of λ̄ how fast it "
        "turns. A channel has N of them; `32 × 20` are 32 channels of 20 modes.",
        "`λ̄ = 0.99`: it keeps 99 % a step, one half after 69 steps.",
        ("modes", "eigenvalue", "eigenvalues", "channel", "state"),
    ),
    Term(
        "context",
        "the length of sequence that the memory is held against",
        "Steps that the model was made for: from config.json, from --context (or --length), or from the settings "
        "file. Whether a memory is short is a question of the context: 800 steps are long for 512 and short for "
        "32,768. Laws are fitted over the lags within it.",
        "`remembers 820 steps, context 512`: nothing within the context is out of reach.",
        ("context length", "sequence length", "window"),
    ),
    Term(
        "step",
        "Δ, the stretch of time that one input stands for",
        "A layer is written in continuous time, with rates A; the step Δ turns them into what is lost at one input: "
        "λ̄ = exp(Δ·A). A large Δ forgets fast and lets much of the input in, a small one holds. Mamba and its "
        "relatives compute Δ from the input, and at rest it is softplus of its bias; models start from Δ between "
        "0.001 and 0.1.",
        "`softplus(0) = 0.69`: with A = −1 a mode keeps exp(−0.69), one half, and forgets within a few inputs.",
        ("Δ", "delta", "dt", "step size", "timestep", "discretisation", "discretization"),
    ),
    Term(
        "trend",
        "which way a layer moves over the checkpoints of a run",
        "`ssmdiag compare RUN` follows the margin of each layer. converging: it shrinks towards the boundary, by "
        "more than chance explains. receding: it grows. settled: it moved, and has levelled off. steady: it did not "
        "move. crossed: a mode is at the boundary or past it. undetermined: these checkpoints cannot tell a trend "
        "from chance; five are the fewest that can.",
        "`converging`, margin 3.0e-3 → 1.0e-3: the slowest mode holds three times as long as at first.",
        ("verdict", "trends", "converging", "receding", "settled", "steady", "crossed", "crossing", "not finite"),
    ),
    Term(
        "use",
        "how many past steps the answers of a live model need",
        "`ssmdiag probe` runs the model on texts, cuts the past off after some steps, and measures how the "
        "answers change. A layer can hold more than the answers use. The share kept with so many steps is 1 where a "
        "longer past changes nothing.",
        "`the answers keep 99 % of the past's effect with 6 steps of it`: what came before hardly acts on them.",
        ("past's effect", "observed", "beyond the text", "cutting"),
    ),
)


def find_term(name: str) -> Term | None:
    """Return the term of this name, or that it is another word for; None where there is none.

    >>> find_term("Half_Life").name, find_term("tau").name, find_term("nothing")
    ('half-life', 'time constant', None)
    """
    wanted = _plain(name)
    return next((term for term in TERMS if wanted in map(_plain, (term.name, *term.also))), None)


def _plain(name: str) -> str:
    return name.casefold().replace("-", " ").replace("_", " ").replace(" ", "")
