"""What `ssmdiag probe` runs and what it shows to it: a directory or a function, texts or a function's batches.

Imports torch: for `cli.probe` when it runs, not when it is loaded.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmdiag.errors import ConfigurationError
from ssmdiag.printable import printable
from ssmdiag.probing.batches import as_shown
from ssmdiag.probing.models import import_transformers, open_model, vocabulary_of
from ssmdiag.probing.texts import directory_tokenizer, read_texts
from ssmdiag.reports.probe.json import Shown
from ssmdiag.retrain.batches import is_batch
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.tasks import TaskData
from ssmdiag.retrain.user_code import build_model, call

CPU_LENGTH, GPU_LENGTH = 1024, 4096
CPU_TEXTS, GPU_TEXTS = 4, 16
MOST_ANSWERS = 2**27
"""Most numbers in the answers to a batch, unless --batch is given: half a gigabyte of float32."""
MOST_TOGETHER = 8


@dataclass(frozen=True, eq=False)
class Source:
    """A live model, and what reads its texts."""

    model: nn.Module
    name: str
    tokenizer: Any = None
    vocabulary: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """Texts that are measured together."""

    shown: Shown
    batches: Sequence[Any]
    length: int | None
    """None: as long as the batches are."""


@dataclass(frozen=True)
class Asked:
    """Options that say which model is run on what."""

    path: Path | None
    model: str | None
    data: str | None
    text: Sequence[Path]
    compare: Sequence[Path]
    length: int | None
    texts: int | None
    batch: int | None
    device: str
    device_map: str | None
    dtype: str
    seed: int
    ranks: Ranks = ALONE
    """Each measures its share of the texts."""

    def require_possible(self) -> None:
        """Raise ConfigurationError where there is no model or nothing to show it, or two of either."""
        if (self.path is None) == (self.model is None):
            seen = "there is no model" if self.path is None else f"{self.path} and --model {self.model} are two models"
            raise ConfigurationError(
                f"{seen}.",
                expected="a directory, or --model package.module:function",
                advice="ssmdiag probe DIR --text FILE",
            )
        if bool(self.text) == (self.data is not None):
            seen = "there is nothing to show the model" if not self.text else "--text and --data are two inputs"
            model = f"--model {self.model}" if self.path is None else shlex.quote(str(self.path))
            raise ConfigurationError(
                f"{seen}.",
                expected="--text FILE, or --data package.module:function",
                advice=f"ssmdiag probe {model} --text FILE",
            )
        if self.data is not None and self.compare:
            raise ConfigurationError("--compare is another text.", expected="--text FILE to compare it with")
        if self.model is not None and (self.device_map or self.dtype != "auto"):
            option = "--device-map" if self.device_map else "--dtype"
            raise ConfigurationError(f"{option}: {self.model} decides itself how its model is made.")

        if self.ranks.count > 1 and self.device_map:
            raise ConfigurationError("--device-map spreads one process over all devices.", advice="leave torchrun out.")

    @property
    def steps(self) -> int:
        """Tokens of a text, where --length does not say."""
        return self.length or (CPU_LENGTH if self.device == "cpu" and not self.device_map else GPU_LENGTH)

    @property
    def most_texts(self) -> int:
        """Texts of a sample, where --texts does not say."""
        return self.texts or (CPU_TEXTS if self.device == "cpu" and not self.device_map else GPU_TEXTS)

    def source(self) -> Source:
        """Return the live model on its device. Raises SsmdiagError."""
        if self.path is not None:
            model = open_model(
                self.path,
                device=self.device,
                dtype=None if self.dtype == "auto" else self.dtype,
                device_map=self.device_map,
            )
            # It says of each kernel that it has only the slow form of it, in the middle of a progress bar.
            import_transformers().utils.logging.set_verbosity_error()
            tokenizer = directory_tokenizer(self.path)
            notes = () if tokenizer else (f"{self.path}: no tokenizer in it: texts are read as bytes",)
            return Source(model, str(self.path), tokenizer, vocabulary_of(model), notes)
        assert self.model is not None
        model = build_model(self.model, self.seed).to(self.device)
        return Source(model, self.model, vocabulary=vocabulary_of(model))

    def samples(self, source: Source) -> Iterator[Sample]:
        """Yield what is to be measured, each by itself: the texts together, then each text that they are compared with.

        Raises SsmdiagError where a text is shorter than --length.
        """
        if self.data is not None:
            batches = _batches(self.data, call("--data", self.data, ("data",)), self.most_texts, self.batch)
            if not batches:
                raise ConfigurationError(
                    f"--data {printable(self.data)}: returned no batch.",
                    expected="one at least, of texts of one length",
                )
            yield Sample(Shown(source.name, (self.data,)), self._share(batches), self.length)
            return
        yield self._sample(source, self.text)
        for other in self.compare:
            yield self._sample(source, [other])

    def _sample(self, source: Source, files: Sequence[Path]) -> Sample:
        windows = read_texts(
            files,
            vocabulary=source.vocabulary,
            length=self.steps,
            windows=-(-self.most_texts // len(files)),
            tokenizer=source.tokenizer,
        )
        together = self.batch or max(1, min(MOST_TOGETHER, MOST_ANSWERS // (self.steps * (source.vocabulary or 1))))
        shown = Shown(source.name, tuple(map(str, files)))
        return Sample(shown, torch.stack(self._share(list(windows))).split(together), self.steps)

    def _share(self, texts: Sequence[Any]) -> list[Any]:
        """Return this rank's texts. Raises ConfigurationError where there are fewer than ranks."""
        if len(texts) < self.ranks.count:
            raise ConfigurationError(
                f"{len(texts):,} texts or batches for {self.ranks.count} ranks.",
                expected="one at least for each",
                advice="give more --texts, a smaller --length, or fewer ranks.",
            )
        return self.ranks.share(texts)


def _batches(name: str, made: Any, most: int, together: int | None) -> list[Any]:
    """Return what --data's function gave as batches: those held out where it gives two kinds."""
    if isinstance(made, TaskData):
        made = made.validation_inputs
    elif isinstance(made, tuple) and len(made) in (2, 3) and not is_batch(made):
        made = made[1]
    if is_batch(made):
        made = made[0]
    if isinstance(made, Tensor):
        return list(made[:most].split(together or MOST_TOGETHER))
    if not isinstance(made, Iterable) or isinstance(made, (str, bytes, dict)):
        raise ConfigurationError(
            f"--data {printable(name)}: returned a {type(made).__name__}.",
            expected="a tensor, an iterable of batches, or (train, validation) of either",
        )
    found, texts = [], 0
    for batch in islice(made, most):
        found.append(batch)
        texts += as_shown(batch, f"batch {len(found)}").texts
        if texts >= most:
            break
    return found
