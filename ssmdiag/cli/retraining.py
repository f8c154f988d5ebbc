"""What `ssmdiag retrain` trains: the built-in model, a checkpoint of it, or the user's model.

Imports torch: for `cli.retrain` when it runs, not when it is loaded.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from ssmdiag.errors import ConfigurationError
from ssmdiag.probing.texts import directory_tokenizer
from ssmdiag.retrain.arms import OWN, Arm, Budget
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.comparison import Experiment, built_in_experiment
from ssmdiag.retrain.foreign import module_experiment
from ssmdiag.retrain.model import ModelSettings
from ssmdiag.retrain.next_token import next_token_data
from ssmdiag.retrain.sources import ModelSource, directory_source, function_source, of_transformers
from ssmdiag.retrain.starting_point import read_starting_point
from ssmdiag.retrain.streamed_batches import StreamedBatches
from ssmdiag.retrain.tasks import TaskData, TaskSettings, find_task
from ssmdiag.retrain.user_code import names_function, read_data, read_task_data

MOST_WEIGHTS = 2**32
"""Most weights of one arm; drawing more takes minutes before they fail to fit in memory."""
MOST = 10**9
"""Most steps, sequences a step, arms together: more is a typing error."""


@dataclass(frozen=True)
class Asked:
    """Options that say which model is trained on what."""

    path: Path | None
    model: str
    named_task: str | None
    text: Path | None
    data: str | None
    length: int | None
    samples: int | None
    width: int
    modes: int
    depth: int
    together: int
    assume: Mapping[str, str]
    output: Path | None
    given: frozenset[str]
    """Names of the options given on the command line."""

    @property
    def foreign(self) -> bool:
        """Whether the model is not built by ssmdiag."""
        return names_function(self.model) or (self.path is not None and of_transformers(self.path))

    @property
    def function(self) -> str | None:
        """The function that --data names, if it names one."""
        return self.data if self.data is not None and names_function(self.data) else None

    @property
    def task(self) -> str:
        """The task; where none is named that of the given file, else lf-poly, which needs long memory."""
        of_file = "arrays" if self.data is not None and self.function is None else "text" if self.text else None
        return self.named_task or of_file or "lf-poly"

    def usual_map(self) -> str:
        """Return the default map to compare with: for a user's model, one that holds any rate."""
        if self.foreign:
            return "heavy-tail"
        return "exp" if self.path is not None and read_starting_point(self.path).map == "best" else "best"

    def require_possible(self, **counts: int) -> None:
        """Raise ConfigurationError for a model that fits no machine, and for impossible counts."""
        weights = self.depth * self.width * (self.width + self.modes)
        if weights > MOST_WEIGHTS:
            raise ConfigurationError(
                f"--width {self.width:,} --modes {self.modes:,} --depth {self.depth:,}: {weights:,} weights.",
                expected=f"{MOST_WEIGHTS:,} at most",
                advice="the effect of a map shows at a width of 64.",
            )
        for name, count in {"together": self.together, **counts}.items():
            if count > MOST:
                raise ConfigurationError(f"--{name} {count:,}: too many.", expected=f"{MOST:,} at most")

    def reject_ignored_options(self) -> None:
        """Raise ConfigurationError for options that this run would ignore."""
        for name, why, advice in self._ignored():
            if name in self.given:
                raise ConfigurationError(f"--{name.replace('_', '-')}: {why}", advice=advice)

    def _ignored(self) -> Iterator[tuple[str, str, str]]:
        """Yield options that are ignored, each with why and what to do."""
        out = "leave it out."
        of_path = self.path is not None and not names_function(self.model)
        model = self.path.name if self.path else self.model
        if self.path is not None or self.foreign:
            sizes = ("width", "modes", "depth", *["model"] * of_path)
            yield from ((name, f"{model} sets the model and its sizes.", out) for name in sizes)
        if self.foreign and self.together != 1:
            yield "together", "models of your own are trained one after another.", out
        if not self.foreign:
            yield "assume", "the built-in model is known; there is nothing to assume.", out
        if self.function is not None:
            why = f"{self.function} returns its own sequences."
            yield from ((name, why, out) for name in ("task", "length", "samples", "text"))
        elif self.foreign and of_path:
            why = f"{model} learns the next token of a text."
            yield from ((name, why, "give --text, or --data package.module:function.") for name in ("task", "data"))
        elif self.text is not None:
            yield "data", f"the model learns {self.text.name} already.", "leave one of them out."
        if self.output is None:
            yield "checkpoint_every", "nothing is kept without --output.", "give --output DIR, or leave it out."


def options_given(context: typer.Context) -> frozenset[str]:
    """Return the names of the options given on the command line, rather than left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def experiment(asked: Asked, arms: Sequence[Arm], budget: Budget) -> Experiment:
    """Return how these arms of the model are trained on the data."""
    if asked.foreign:
        return _of_module(asked, arms, budget)
    start = read_starting_point(asked.path) if asked.path else None
    settings = start.settings if start else ModelSettings(asked.model, asked.width, asked.modes, asked.depth)
    title, data = _task_data(asked)
    if start is not None:
        arms = tuple(dict.fromkeys(replace(arm, param=start.map) if arm.param == OWN else arm for arm in arms))
    return built_in_experiment(arms, data, settings, budget, task=title, together=asked.together, start=start)


def _of_module(asked: Asked, arms: Sequence[Arm], budget: Budget) -> Experiment:
    source = (
        function_source(asked.model, asked.path)
        if asked.path is None or names_function(asked.model)
        else directory_source(asked.path)
    )
    title, batches = _batches(asked, budget, source)
    if isinstance(batches, StreamedBatches):
        if "batch" in asked.given:
            raise ConfigurationError(f"--batch: {asked.data} makes batches of its own.", advice="leave it out.")
        budget = replace(budget, batch=batches.size)
    return module_experiment(arms, source, batches, budget, task=title, assume=asked.assume)


def _batches(asked: Asked, budget: Budget, source: ModelSource) -> tuple[str, SampledBatches | StreamedBatches]:
    if asked.function is not None:
        return asked.function, read_data(asked.function, budget.batch)
    if source.vocabulary is None:
        title, data = _task_data(asked)
        return title, SampledBatches.of(data, budget.batch)
    if asked.text is None:
        raise ConfigurationError(
            f"{source.name}: there is no text to train it on.",
            expected="--text FILE, or --data package.module:function",
            advice=f"ssmdiag retrain {shlex.quote(str(asked.path))} --text FILE",
        )
    assert asked.path is not None
    tokenizer = directory_tokenizer(asked.path)
    samples = asked.samples or max(1, budget.steps) * budget.batch  # a run sees no more
    data = next_token_data(
        asked.text, vocabulary=source.vocabulary, length=asked.length, samples=samples, tokenizer=tokenizer
    )
    return f"next {'token' if tokenizer else 'byte'} of {asked.text.name}", SampledBatches.of(data, budget.batch)


def _task_data(asked: Asked) -> tuple[str, TaskData]:
    if asked.function is not None:
        return asked.function, read_task_data(asked.function)
    path = asked.text or (Path(asked.data) if asked.data else None)
    task = find_task(asked.task)
    if path is not None and not task.needs_path:
        raise ConfigurationError(
            f"--task {task.name} reads no file, and {path.name} would not be used.", advice="leave one of them out."
        )
    return asked.task, task.make(TaskSettings(length=asked.length, samples=asked.samples, path=path))
