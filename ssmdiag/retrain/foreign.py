"""Arms of a user's module: each is a fresh copy of it, under the arm's map and frozen as the arm says.

The module's own code is trained; its recurrence is found by the families that read checkpoints, and put under
another map by `ssmdiag.reparam`. Arms train one after another, seed by seed, or spread over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

from torch import nn

from ssmdiag.errors import ConfigurationError, LayerError
from ssmdiag.recurrence.maps import find_map
from ssmdiag.reparam import Reparameterisation, find_recurrence, freeze, reparameterize
from ssmdiag.reparam.fit import rate_map
from ssmdiag.retrain.arms import OWN, Arm, Budget
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.comparison import Experiment
from ssmdiag.retrain.distributed import Ranks
from ssmdiag.retrain.memory_limit import is_out_of_memory, saying_what_to_lower
from ssmdiag.retrain.module_trainee import ModuleTrainee
from ssmdiag.retrain.sources import ModelSource, settings_file
from ssmdiag.retrain.streamed_batches import StreamedBatches


def module_experiment(
    arms: Sequence[Arm],
    source: ModelSource,
    batches: SampledBatches | StreamedBatches,
    budget: Budget,
    *,
    task: str,
    assume: Mapping[str, str] | None = None,
) -> Experiment:
    """Return how arms are trained, each on a copy of the source's module.

    Raises where a map cannot hold the rates (MapError, which names a b of best that can), a recurrence is not known
    (UnknownFamilyError), weights are NaN (LayerError), or an arm asks for what a module cannot have
    (ConfigurationError). When training begins, ConfigurationError where model and data do not fit.
    """
    for arm in arms:
        if arm.init != "family":
            raise ConfigurationError(
                f"--init {arm.init}: a model of your own starts with the memory it has.",
                advice="leave it out, or build the model with another memory.",
            )
    smaller = "a smaller model."
    with saying_what_to_lower(f"building {source.name}", smaller):
        prototype, seed = source.build(arms[0].seed), arms[0].seed
    title = f"{source.name}: {type(prototype).__name__}, {sum(p.numel() for p in prototype.parameters()):,} parameters"
    with saying_what_to_lower(f"copying {title}", smaller):
        notes = [*source.notes, *_try_out(arms, prototype, assume), *_notes(arms, source)]
    if isinstance(batches, SampledBatches):
        notes += budget.notes(batches.draw.count)
    beside = {path.name: path.read_bytes() for path in source.tokenizer}
    beside["config.json"] = settings_file(source, prototype, batches.length)

    def build(group: tuple[Arm, ...], ranks: Ranks) -> ModuleTrainee:
        nonlocal prototype, seed
        (arm,) = group
        if arm.seed != seed and source.seeded:
            prototype, seed = source.build(arm.seed), arm.seed
        module, _ = _prepared(prototype, arm, assume)
        module.to(ranks.device)
        return ModuleTrainee(module, arm, batches, source=title, beside=beside, assume=assume, ranks=ranks)

    return Experiment(
        arms=tuple(arms),
        budget=budget,
        task=task,
        model=title,
        context=batches.length,
        kernel=batches.kernel if isinstance(batches, SampledBatches) else None,
        notes=tuple(notes),
        groups=lambda some: [(arm,) for arm in sorted(some, key=lambda arm: arm.seed)],
        build=build,
        smaller="a smaller model, --batch or --length.",
        assume=assume,
    )


def own_maps(module: nn.Module, assume: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the maps that a module's rates go through, each once. Raises UnknownFamilyError where there are none."""
    found = find_recurrence(module, assume=assume)
    return tuple(dict.fromkeys(rate_map(weight).name for weight in found.weights if weight.role == "rate"))


def _try_out(arms: Sequence[Arm], prototype: nn.Module, assume: Mapping[str, str] | None) -> list[str]:
    """Prepare one arm of each kind, so that errors appear before anything is trained; return notes."""
    notes = []
    kinds = {(arm.param, arm.freeze): arm for arm in reversed(arms)}
    for arm in reversed(kinds.values()):
        _, swap = _prepared(prototype, arm, assume)
        left = [weight for weight in swap.left_alone if weight.reason != "the model's own map is this one"]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            notes.append(f"{arm.param}: {left[0].name}{more} keeps its own map: {left[0].reason}")
    if any(arm.param == OWN for arm in arms):
        notes.append(f"own is {' and '.join(own_maps(prototype, assume)) or 'no map that weights go through'}")
    return list(dict.fromkeys(notes))


def _prepared(prototype: nn.Module, arm: Arm, assume: Mapping[str, str] | None) -> tuple[nn.Module, Reparameterisation]:
    try:
        module = deepcopy(prototype)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LayerError(
            f"{type(prototype).__name__} cannot be copied ({str(error).splitlines()[0]}).",
            expected="a module whose tensors are parameters and buffers",
        ) from error
    swap = Reparameterisation((), ())
    if arm.param != OWN:
        # As a map: arms that are compared have the very one that they name, and `best` by its name adapts to the model.
        swap = reparameterize(module, find_map(arm.param), assume=assume)
    if arm.freeze != "none":
        freeze(module, arm.freeze, assume=assume)
    return module, swap


def _notes(arms: Sequence[Arm], source: ModelSource) -> list[str]:
    several = len({arm.seed for arm in arms}) > 1
    notes = {
        "weight decay is on every weight but those of the recurrence": any(arm.weight_decay for arm in arms),
        f"seeds differ in their batches; all start with the weights of {source.name}": several and not source.seeded,
    }
    return [note for note, applies in notes.items() if applies]
