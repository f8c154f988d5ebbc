"""The tasks of `ssmdiag retrain`: all that modules of this package list in `TASKS`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from ssmdiag.errors import ConfigurationError, meant
from ssmdiag.retrain.tasks.interface import TargetLaw, Task, TaskData, TaskSettings

__all__ = ["TargetLaw", "Task", "TaskData", "TaskSettings", "find_task", "known_tasks"]

MACHINERY = frozenset({"interface"})


@cache
def known_tasks() -> tuple[Task, ...]:
    """Return all tasks, by name."""
    modules = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in MACHINERY]
    tasks = [task for name in modules for task in importlib.import_module(f"{__name__}.{name}").TASKS]
    return tuple(sorted(tasks, key=lambda task: task.name))


def find_task(name: str) -> Task:
    """Return the task of this name. Raises ConfigurationError, which lists them, for any other."""
    task = next((task for task in known_tasks() if task.name == name), None)
    if task is None:
        raise ConfigurationError(
            f"--task {name}: no such task.",
            expected=f"one of {', '.join(task.name for task in known_tasks())}",
            instead=meant(name, [task.name for task in known_tasks()]),
        )
    return task
