"""The callbacks for Lightning and transformers: their logic on trainers that look like theirs, and on the real ones."""

from __future__ import annotations

import importlib
import math
import pickle
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from ssmdiag.errors import UnknownFamilyError
from ssmdiag.watching import lightning, transformers
from tests.watching.test_watch import mamba

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NAN_AT = 7


class Logger:
    """What a logger of Lightning, or a reporting callback of transformers, is asked to log."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.logged.append((state.global_step, logs))


class ProgressCallback(Logger):
    """The name of the one that prints."""


def break_at(step: int, model: nn.Module) -> None:
    if step == NAN_AT:
        with torch.no_grad():
            model.get_parameter("layers.1.mixer.A_log").fill_(math.nan)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stop", [True, False])
def test_lightning_logs_at_steps_of_the_optimiser_on_rank_zero_and_stops_at_nan_on_all(rank: int, stop: bool) -> None:
    model, logger = mamba(), Logger()
    trainer = SimpleNamespace(global_step=0, is_global_zero=rank == 0, loggers=[logger], should_stop=False)
    callback = lightning.Hooks(every=2, stop=stop, laws_every=0, warn=lambda sentence: None)
    callback.on_fit_start(trainer, model)
    for batch in range(3 * 10):  # three batches to a step
        trainer.global_step = batch // 3
        break_at(trainer.global_step, model)
        callback.on_train_batch_end(trainer, model, None, None, batch)
        if trainer.should_stop:
            break
    assert [reading.train_step for reading in callback.watch.readings] == [0, 2, 4, 6, 8]
    assert trainer.should_stop == stop
    assert [step for step, _ in logger.logged] == ([0, 2, 4, 6, 8] if rank == 0 else [])
    assert all(metrics["ssmdiag/layers.0.mixer/margin"] > 0 for _, metrics in logger.logged)
    assert all(math.isnan(metrics["ssmdiag/margin"]) == (step == 8) for step, metrics in logger.logged)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stop", [True, False])
def test_transformers_loggers_get_the_numbers_and_the_screen_does_not(rank: int, stop: bool) -> None:
    model, reporting, screen = mamba(), Logger(), ProgressCallback()
    trainer = SimpleNamespace(model=model, callback_handler=SimpleNamespace(callbacks=[reporting, screen]))
    callback = transformers.Hooks(trainer, every=2, stop=stop, laws_every=0, warn=lambda sentence: None)
    trainer.callback_handler.callbacks.append(callback)
    state = SimpleNamespace(global_step=0, is_world_process_zero=rank == 0)
    control = SimpleNamespace(should_training_stop=False)
    callback.on_train_begin(None, state, control, model=model)
    for state.global_step in range(1, 10):
        break_at(state.global_step, model)
        callback.on_step_end(None, state, control)
        if control.should_training_stop:
            break
    assert control.should_training_stop == stop
    assert [step for step, _ in reporting.logged] == ([0, 2, 4, 6, 8] if rank == 0 else [])
    assert all("ssmdiag/layers.1.mixer/half_life" in logs for _, logs in reporting.logged)
    assert screen.logged == []


def test_a_model_without_a_recurrence_is_refused_before_the_first_step() -> None:
    with pytest.raises(UnknownFamilyError):
        lightning.Hooks().on_fit_start(SimpleNamespace(), nn.Linear(2, 2))
    with pytest.raises(UnknownFamilyError):
        transformers.Hooks(SimpleNamespace(model=nn.Linear(2, 2))).on_train_begin(None, None, None)


@pytest.mark.parametrize("module", [lightning, transformers])
def test_other_names_are_not_there(module: Any) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Watch_'"):
        module.Watch_  # noqa: B018


def block(beginning: str) -> str:
    """Return the block of the README with this line."""
    (found,) = (text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if beginning in text)
    return str(found)


def test_the_readme_s_own_loop_runs(capsys: pytest.CaptureFixture[str]) -> None:
    model, steps = mamba(), []
    code = block("watch = Watch(model")
    exec(code, {"model": model, "batches": range(201), "train": lambda model, batch: steps.append(batch)})
    assert len(steps) == 201
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Any:
    """A package that may not be installed; importing it, and running it, warns of much."""
    return pytest.importorskip(request.param)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("real", ["lightning.pytorch", "pytorch_lightning"], indirect=True)
def test_the_readme_s_lightning_entry_runs_and_logs(real: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data import DataLoader

    module = importlib.reload(lightning)
    monkeypatch.setitem(module.__dict__, "WatchMemory", None)
    monkeypatch.delitem(module.__dict__, "WatchMemory")
    logger = real.loggers.CSVLogger(tmp_path)

    class Model(real.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = mamba()

        def training_step(self, batch: Any, index: int) -> Any:
            break_at(self.global_step, self.model)
            return sum((weight**2).sum() for weight in self.parameters())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    trainer = real.Trainer(
        max_steps=20, accumulate_grad_batches=2, logger=logger, accelerator="cpu", enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[module.WatchMemory(every=2)],
    )  # fmt: skip
    trainer.fit(Model(), DataLoader(torch.zeros(100, 1)))
    assert pickle.loads(pickle.dumps(module.WatchMemory(5))).every == 5
    assert trainer.global_step == NAN_AT + 1
    (table,) = tmp_path.rglob("metrics.csv")
    head, *rows = table.read_text().splitlines()
    at = head.split(",").index("ssmdiag/margin")
    assert [row.split(",")[at] for row in rows][-1] == "nan"
    assert len(rows) == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("real", ["accelerate"], indirect=True)
def test_the_readme_s_transformers_entry_runs_and_logs(real: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from tests.families.tiny_transformers import tiny_model

    class Reporting(TrainerCallback):
        logged: ClassVar[list[dict[str, float]]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.logged.append(logs)

    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 120:
                with torch.no_grad():
                    next(weight for name, weight in model.named_parameters() if "A_log" in name).fill_(math.nan)

    model = tiny_model("mamba", seed=0).float()
    data = [{"input_ids": torch.ones(4, dtype=torch.long), "labels": torch.ones(4, dtype=torch.long)}] * 400
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=1, max_steps=300, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    names: dict[str, Any] = {"model": model, "args": args, "data": data}
    code = block("from ssmdiag.watching.transformers import WatchMemory")
    code = code.replace("trainer.train()", "")
    exec(textwrap.dedent(code), names)
    trainer = names["trainer"]
    assert isinstance(trainer, Trainer)
    trainer.add_callback(Breaks)
    trainer.add_callback(Reporting)
    trainer.train()
    assert trainer.state.global_step == 200
    margins = [logs["ssmdiag/margin"] for logs in Reporting.logged if "ssmdiag/margin" in logs]
    assert len(margins) == 3
    assert math.isnan(margins[-1])
