"""ListOps: the value of a nested list of MIN, MAX, MED and SM, by the rules of the Long Range Arena.

[MAX 2 9 [MIN 4 7 ] 0 ] is 9 (Nangia & Bowman, arXiv 1804.06028; lengths as in Tay et al., arXiv 2011.04006). An
operator has 2 to 10 arguments. Each of them, and the root, is an operator with chance ¼ above depth 10, else
a digit. Expressions are kept if they are at most as long as requested and at least a quarter of that; the Long Range
Arena keeps 500 to 2,000 tokens. MED is the median rounded down, SM the sum modulo 10. Sequences are padded in front,
so that the answer is read at the last step, where the expression ends.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

import torch

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.tasks.interface import Task, TaskData, TaskSettings

TOKENS = ("", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "[MIN", "[MAX", "[MED", "[SM", "]")
"""Token 0 is padding."""
OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
LENGTH, SAMPLES, VALIDATION = 256, 8_192, 1_024
SHORTEST = 4
"""The shortest expression is `[MIN 1 2 ]`."""
CHANCE, ARGUMENTS, DEPTH = 0.25, (2, 10), 10


def evaluate(tokens: Sequence[str]) -> int:
    """Return the value of an expression. Raises ValueError for one that is not well formed.

    >>> evaluate("[SM 9 [MED 1 4 9 ] [MAX 0 7 ] ]".split())
    0
    """
    open_lists: list[tuple[str, list[int]]] = [("", [])]
    for token in tokens:
        if token in OPERATORS:
            open_lists.append((token, []))
        elif token == "]" and len(open_lists) > 1 and open_lists[-1][1]:
            operator, values = open_lists.pop()
            open_lists[-1][1].append(OPERATORS[operator](values))
        elif token.isdigit() and len(token) == 1:
            open_lists[-1][1].append(int(token))
        else:
            raise ValueError(f"{token!r} cannot stand there")
    if len(open_lists) != 1 or len(open_lists[0][1]) != 1:
        raise ValueError("not one whole expression")
    return open_lists[0][1][0]


def draw_expression(generator: random.Random, shortest: int, longest: int) -> list[str]:
    """Draw expressions by the rules until one has from `shortest` to `longest` tokens; return that one."""
    while True:
        tokens: list[str] = []
        # Arguments still to draw in every open list. The first number is for the root, which is in no list.
        pending = [1]
        while pending and len(tokens) <= longest:
            if pending[-1] == 0:
                pending.pop()
                if pending:
                    tokens.append("]")
                continue
            pending[-1] -= 1
            if len(pending) < DEPTH and generator.random() < CHANCE:
                tokens.append(generator.choice(list(OPERATORS)))
                pending.append(generator.randint(*ARGUMENTS))
            else:
                tokens.append(str(generator.randrange(10)))
        if not pending and shortest <= len(tokens) <= longest:
            return tokens


def make(settings: TaskSettings) -> TaskData:
    """Return padded expressions as tokens and their values. Raises ConfigurationError for a length of under 4."""
    length = settings.length or LENGTH
    if length < SHORTEST:
        raise ConfigurationError(f"--length {length}: no expression is so short.", expected=f"{SHORTEST} at least")
    count = settings.samples or SAMPLES
    generator = random.Random(settings.seed)
    codes = {token: code for code, token in enumerate(TOKENS)}
    x = torch.zeros(count + VALIDATION, length, dtype=torch.long)
    y = torch.zeros(count + VALIDATION, dtype=torch.long)
    for row in range(len(x)):
        tokens = draw_expression(generator, max(SHORTEST, length // 4), length)
        x[row, length - len(tokens) :] = torch.tensor([codes[token] for token in tokens])
        y[row] = evaluate(tokens)
    return TaskData(
        x[:count], y[:count], x[count:], y[count:],
        "cross-entropy", "last step", outputs=10, vocabulary=len(TOKENS),
    )  # fmt: skip


TASKS = (Task("listops", "the value of a nested list of MIN, MAX, MED, SM", "Long Range Arena's rules", make),)
