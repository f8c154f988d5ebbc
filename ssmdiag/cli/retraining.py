"""What `ssmdiag retrain` trains: the built-in model, a checkpoint of it, or the user's model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.errors import ConfigurationError

if TYPE_CHECKING:
    import typer

    from ssmdiag.retrain.arms import Budget
    from ssmdiag.retrain.batches import SampledBatches
    from ssmdiag.retrain.results import RetrainResult
    from ssmdiag.retrain.sources import ModelSource
    from ssmdiag.retrain.streamed_batches import StreamedBatches
    from ssmdiag.retrain.tasks import TaskData


MOST_WEIGHTS = 2**32
"""Most weights of one arm; drawing more takes minutes before they fail to fit in memory."""
MOST = 10**9
"""Most steps, sequences a step, arms together: more is a typing error."""


@dataclass(frozen=True)
class Asked:
    """Options that say which model is trained on what."""

    path: Path | None
    model: str
    task: str
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
        from ssmdiag.retrain.sources import of_transformers
        from ssmdiag.retrain.user_code import names_function

        return names_function(self.model) or (self.path is not None and of_transformers(self.path))

    def usual_map(self) -> str:
        """Return the default map to compare with: for a user's model, one that holds any rate."""
        if self.foreign:
            return "heavy-tail"
        if self.path is not None:
            from ssmdiag.retrain.starting_point import read_starting_point

            return "exp" if read_starting_point(self.path).map == "best" else "best"
        return "best"

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
                raise ConfigurationError(f"--{name} {count:,}: more than any run has.", expected=f"{MOST:,} at most")

    def reject_ignored_options(self) -> None:
        """Raise ConfigurationError for options that this run would ignore."""
        for name, why, advice in self._ignored():
            if name in self.given:
                raise ConfigurationError(f"--{name.replace('_', '-')}: {why}", advice=advice)

    def _ignored(self) -> Iterator[tuple[str, str, str]]:
        """Yield options that are ignored, each with why and what to do."""
        from ssmdiag.retrain.user_code import names_function

        out = "leave it out."
        given = self.path is not None or self.foreign
        if given:
            own = f"{self.path.name if self.path else self.model} has a model and sizes of its own."
            yield from ((name, own, out) for name in ("width", "modes", "depth"))
        if self.path is not None and not names_function(self.model):
            yield "model", f"{self.path.name} has a model and sizes of its own.", out
        if self.foreign and self.together != 1:
            yield "together", "models that are given are trained one after another.", out
        if not self.foreign:
            yield "assume", "the built-in model is known; there is nothing to assume.", out
        if self.data is not None and names_function(self.data):
            why = f"{self.data} returns the sequences as they are."
            yield from ((name, why, out) for name in ("task", "length", "samples", "text"))
        elif self.foreign and not names_function(self.model):
            why = f"{self.path.name if self.path else self.model} learns the next token of a text."
            yield from ((name, why, "give --text, or --data package.module:function.") for name in ("task", "data"))
        elif self.text is not None:
            yield "data", f"{self.text.name} is what would be learned.", "leave one of them out."
        if self.output is None:
            yield "checkpoint_every", "nothing is kept without --output.", "give --output DIR, or leave it out."


def options_given(context: typer.Context) -> frozenset[str]:
    """Return the names of the options given on the command line, rather than left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def task_of(text: Path | None, data: str | None) -> str:
    """Return the task where none is named: that of the given file, else lf-poly, which needs long memory."""
    from ssmdiag.retrain.user_code import names_function

    if data is not None and not names_function(data):
        return "arrays"
    return "text" if text is not None else "lf-poly"


def silence_other_ranks() -> None:
    """Leave the remarks of torch and transformers to the first rank; read when they are imported, so call it before."""
    if os.environ.get("RANK", "0") != "0":
        warnings.simplefilter("ignore")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def comparison(asked: Asked, budget: Budget) -> Callable[..., RetrainResult]:
    """Return the function that compares arms: it takes them and the keywords common to all comparisons."""
    if asked.foreign:
        from ssmdiag.retrain.foreign import compare_modules
        from ssmdiag.retrain.streamed_batches import StreamedBatches

        source = _source(asked)
        title, batches = _batches(asked, budget, source)
        if isinstance(batches, StreamedBatches):
            if "batch" in asked.given:
                raise ConfigurationError(f"--batch: {asked.data} makes batches of its own.", advice="leave it out.")
            budget = replace(budget, batch=batches.size)

        def compare_foreign(arms: Any, **common: Any) -> RetrainResult:
            return compare_modules(arms, source, batches, budget, task=title, assume=asked.assume, **common)

        return compare_foreign
    from ssmdiag.retrain.arms import OWN
    from ssmdiag.retrain.comparison import compare_arms
    from ssmdiag.retrain.model import ModelSettings
    from ssmdiag.retrain.starting_point import read_starting_point

    start = read_starting_point(asked.path) if asked.path else None
    settings = start.settings if start else ModelSettings(asked.model, asked.width, asked.modes, asked.depth)
    title, data = _task_data(asked)

    def compare(arms: Any, **common: Any) -> RetrainResult:
        if start is not None:
            arms = [replace(arm, param=start.map) if arm.param == OWN else arm for arm in arms]
        arms = tuple(dict.fromkeys(arms))
        return compare_arms(arms, data, settings, budget, task=title, together=asked.together, start=start, **common)

    return compare


def _source(asked: Asked) -> ModelSource:
    from ssmdiag.retrain.sources import directory_source, function_source
    from ssmdiag.retrain.user_code import names_function

    if names_function(asked.model):
        return function_source(asked.model, asked.path)
    assert asked.path is not None
    return directory_source(asked.path)


def _batches(asked: Asked, budget: Budget, source: ModelSource) -> tuple[str, SampledBatches | StreamedBatches]:
    from ssmdiag.retrain.batches import SampledBatches
    from ssmdiag.retrain.next_token import directory_tokenizer, next_token_data
    from ssmdiag.retrain.user_code import names_function, read_data

    if asked.data and names_function(asked.data):
        return asked.data, read_data(asked.data, budget.batch)
    if source.vocabulary is None:
        title, data = _task_data(asked)
        return title, SampledBatches.of(data, budget.batch)
    if asked.text is None:
        raise ConfigurationError(
            f"{source.name}: there is no text to train it on.",
            expected="--text FILE, or --data package.module:function",
        )
    assert asked.path is not None
    tokenizer = directory_tokenizer(asked.path)
    samples = asked.samples or max(1, budget.steps) * budget.batch  # a run sees no more
    data = next_token_data(
        asked.text, vocabulary=source.vocabulary, length=asked.length, samples=samples, tokenizer=tokenizer
    )
    return f"next {'token' if tokenizer else 'byte'} of {asked.text.name}", SampledBatches.of(data, budget.batch)


def _task_data(asked: Asked) -> tuple[str, TaskData]:
    from ssmdiag.retrain.tasks import TaskSettings, find_task
    from ssmdiag.retrain.user_code import names_function, read_task_data

    if asked.data and names_function(asked.data):
        return asked.data, read_task_data(asked.data)
    path = asked.text or (Path(asked.data) if asked.data else None)
    task = find_task(asked.task)
    if path is not None and not task.needs_path:
        raise ConfigurationError(
            f"--task {task.name} reads no file, and {path.name} would not be used.", advice="leave one of them out."
        )
    made = task.make(TaskSettings(length=asked.length, samples=asked.samples, path=path))
    return asked.task, made
