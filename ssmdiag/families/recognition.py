"""Checkpoint → its recurrent layers, by tensor names and shapes alone. Reads no values."""

from __future__ import annotations

import re
import shlex
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ssmdiag.checkpoint import Checkpoint
from ssmdiag.checkpoint.attention import attention_layers
from ssmdiag.checkpoint.names import join, layer_numbers
from ssmdiag.errors import AssumptionError, UnknownFamilyError, closest
from ssmdiag.families import known_families
from ssmdiag.families.adapters import adapter_error
from ssmdiag.families.interface import Family, Option, Spelling
from ssmdiag.families.layer import Layer, bind_axes
from ssmdiag.printable import module_name, plural

LOOKS_RECURRENT = re.compile(
    r"(?:^|[._])(?:A_log|log_A|log_a|A_real|A_diag|Lambda|lambda_|nu_log|theta_log|params_log|time_decay|dt_bias|"
    r"log_dt|inv_dt|log_step|a_param|recurrent_param|log_decay|decay_log|ssm_a|slope_rate)(?:[._].*)?$"
)
"""Names that almost always belong to a recurrence; those that no family used are reported."""


MOST_UNCLAIMED = 500
"""Most modules outside any layer, with a tensor of one name, that are compared with the spellings to find what they
lack; a file can have a hundred thousand."""


@dataclass(frozen=True)
class NearMiss:
    """A module that has some tensors of a spelling but lacks others."""

    family: Family
    spelling: Spelling
    path: str
    present: tuple[str, ...]
    missing: tuple[str, ...]
    reason: str
    """Why it is not that family, in words."""
    evidence: float
    """From 0 to 1: the share of the spelling's tensors that are present; names that few families use weigh more."""

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts near misses, best first: those with their telltale, then by evidence."""
        return self.spelling.telltale not in self.present, -self.evidence


@dataclass(frozen=True, eq=False)
class Recognition:
    """What was recognised in a checkpoint."""

    layers: tuple[Layer, ...]
    problems: tuple[str, ...]
    """Modules that could not be assigned to one family."""
    near_misses: tuple[NearMiss, ...]
    """Best first; only modules that no family claimed."""
    unrecognised: tuple[str, ...]
    """Tensors that look recurrent but that no layer uses."""

    @property
    def incomplete(self) -> tuple[NearMiss, ...]:
        """Modules that look like the complete layers of this file, one near miss each, best first."""
        complete: dict[str, list[Layer]] = defaultdict(list)
        for layer in self.layers:
            complete[layer.spelling.name].append(layer)
        misses = [miss for miss in self.near_misses if miss.reason and complete[miss.spelling.name]]
        parts = _parts(self.layers, [miss.path for miss in misses if miss.spelling.telltale not in miss.present])
        found: dict[str, NearMiss] = {}
        for miss in misses:
            if miss.spelling.telltale in miss.present or any(
                {*miss.present, *miss.missing} == set(layer.names)
                # A part of its own makes it another module, unless it stands where a layer should.
                and (parts[miss.path] <= parts[layer.path] or _place(miss.path) == _place(layer.path))
                for layer in complete[miss.spelling.name]
            ):
                found.setdefault(miss.path, miss)
        return tuple(found.values())

    @property
    def guess(self) -> str | None:
        """Warning that layers are read through an unreviewed map; None where there are no such layers."""
        return guess_of(layer.family for layer in self.layers)

    def require_layers(self, checkpoint: Checkpoint) -> None:
        """Raise UnknownFamilyError if nothing was recognised."""
        if not self.layers:
            raise adapter_error(checkpoint) or unknown_family(checkpoint, self)


def _parts(layers: Sequence[Layer], others: Collection[str]) -> dict[str, set[str]]:
    """Return what the modules at these paths, and these layers, are made of: the first element of each local name."""
    parts: dict[str, set[str]] = {path: set() for path in (*others, *(layer.path for layer in layers if others))}
    for name in layers[0].checkpoint if parts else ():
        elements = name.split(".")
        for depth in range(len(elements)):
            if (path := ".".join(elements[:depth])) in parts:
                parts[path].add(elements[depth])
    return parts


def _place(path: str) -> str:
    """Return a path whose numbers are left out: where in its block a module stands."""
    return re.sub(r"\d+", "", path)


def guess_of(families: Iterable[Family]) -> str | None:
    """Return a warning that families come from an unreviewed map file; None where none do."""
    maps = ", ".join(dict.fromkeys(family.paper for family in families if not family.reviewed))
    warning = (
        f"a guess: layers are read through {maps}, which ssmdiag printed and nobody has reviewed; "
        "check every line of it, then set reviewed = true there"
    )
    return warning if maps else None


def recognise(
    checkpoint: Checkpoint,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
) -> Recognition:
    """Return the recurrent layers of a checkpoint, in the order of their numbers.

    `assume` sets options that tensors do not determine, and `family` to choose one where several fit.
    Raises AssumptionError where `assume` names what none of the families knows.
    """
    families = tuple(families) if families is not None else known_families()
    assume = dict(assume or {})
    _check_assumptions(assume, families)
    index = _Index(checkpoint, families, assume.get("family"))
    claims = [claim for family in families for spelling in family.spellings for claim in index.claims(family, spelling)]
    if chosen := assume.get("family"):
        contested = {name for layer in claims if layer.family.name == chosen for name in layer.names.values()}
        claims = [c for c in claims if c.family.name == chosen or not contested & set(c.names.values())]
    layers, problems = _settle(claims)
    problems += _idle_declarations(families, claims)
    used = {name for layer in layers for name in layer.names.values()}
    near = sorted(index.near_misses(used), key=lambda miss: miss.rank)
    options = {key: value for key, value in assume.items() if key != "family"}
    ready = [
        Layer(c.path, c.family, c.spelling, checkpoint, c.names, c.axes, c.defect, options, device)
        for c in sorted(layers, key=lambda c: (layer_numbers(c.path), c.path))
    ]
    return Recognition(
        layers=tuple(ready),
        problems=tuple(problems),
        near_misses=tuple(near),
        unrecognised=tuple(n for n in checkpoint if n not in used and LOOKS_RECURRENT.search(n)),
    )


def _idle_declarations(families: Sequence[Family], claims: Sequence[Layer]) -> list[str]:
    """Say which families of a map file found no layer."""
    found = {claim.family.name for claim in claims}
    return [
        f"{family.paper}: {family.name} fits no layer; no module{f' at {spelling.path}' if spelling.path else ''} has "
        + " and ".join(f"{local} ({axes})" for local, axes in spelling.tensors.items())
        for family in families if family.declared and family.name not in found
        for spelling in family.spellings
    ]  # fmt: skip


class _Index:
    """Positions in the checkpoint of each local name that occurs in any spelling."""

    def __init__(self, checkpoint: Checkpoint, families: Sequence[Family], chosen: str | None = None) -> None:
        self.chosen = chosen
        self.checkpoint = checkpoint
        self.families = families
        self.users: dict[str, set[str]] = defaultdict(set)
        for family in families:
            for spelling in family.spellings:
                for local in (*spelling.tensors, *spelling.optional):
                    self.users[local].add(family.name)
        locals_ = frozenset(self.users)
        depths = {local.count(".") for local in locals_}
        self.ordered: list[str] = []
        """All names, sorted: those of a module follow each other. Empty where no spelling asks for them."""
        if any(spelling.strangers for family in families for spelling in family.spellings):
            self.ordered = sorted(checkpoint)
        self.paths: dict[str, list[str]] = defaultdict(list)
        for name in checkpoint:
            elements = name.split(".")
            for depth in depths:
                local = ".".join(elements[-depth - 1 :])
                if local in locals_ and len(elements) > depth:
                    self.paths[local].append(".".join(elements[: -depth - 1]))

    def claims(self, family: Family, spelling: Spelling) -> Iterator[Layer]:
        """Yield every module that has all tensors of a spelling, with the right numbers of axes."""
        rarest = min(spelling.tensors, key=lambda local: len(self.paths.get(local, ())))
        for path in self.paths.get(rarest, ()):
            names = {local: join(path, local) for local in spelling.tensors}
            if not all(name in self.checkpoint for name in names.values()) or self._ruled_out(family, spelling, path):
                continue
            names |= {local: join(path, local) for local in spelling.optional if join(path, local) in self.checkpoint}
            axes, defect = bind_axes(spelling, {local: self.checkpoint[name] for local, name in names.items()})
            if axes is not None:
                yield Layer(path, family, spelling, self.checkpoint, names, axes, defect)

    def near_misses(self, used: Collection[str]) -> Iterator[NearMiss]:
        """Yield modules with the telltale, or most tensors, of a spelling that do not match it and are not in use."""
        free = {
            local: [path for path in paths if join(path, local) not in used][:MOST_UNCLAIMED]
            for local, paths in self.paths.items()
        }
        for family in self.families:
            for spelling in family.spellings:
                locals_ = (*spelling.tensors, *spelling.optional)
                for path in dict.fromkeys(path for local in locals_ for path in free.get(local, ())):
                    present = [local for local in locals_ if join(path, local) in self.checkpoint]
                    required = [local for local in spelling.tensors if local in present]
                    claimed = any(join(path, local) in used for local in present)
                    if claimed or not required or self._ruled_out(family, spelling, path):
                        continue
                    miss = self._near_miss(family, spelling, path, present)
                    enough = 3 * len(required) >= 2 * len(spelling.tensors) and len(required) > 1
                    if spelling.telltale in present or enough or miss.evidence > 0.5:
                        yield miss

    def _near_miss(self, family: Family, spelling: Spelling, path: str, present: list[str]) -> NearMiss:
        missing = tuple(local for local in spelling.tensors if local not in present)
        reason = f"{', '.join(join(path, local) for local in missing)} missing" if missing else ""
        there, lacking = (sum(1 / len(self.users[local]) for local in locals_) for locals_ in (present, missing))
        for local, pattern in spelling.tensors.items():
            if local in present:
                one = self.checkpoint[join(path, local)]
                axes, _ = bind_axes(spelling, {local: one})
                if axes is None:
                    lacking += 1
                    reason = reason or f"{one.name} is {one.dtype} {one.shape}, expected ({pattern})"
        if not reason:
            stored = {local: self.checkpoint[join(path, local)] for local in spelling.tensors}
            if bind_axes(spelling, stored)[0] is None:
                shapes = " and ".join(f"{tensor.name} {tensor.shape}" for tensor in stored.values())
                patterns = ", ".join(f"({pattern})" for pattern in spelling.tensors.values())
                reason = f"{shapes} do not fit together, expected {patterns}"
        return NearMiss(family, spelling, path, tuple(present), missing, reason, there / (there + lacking))

    def _ruled_out(self, family: Family, spelling: Spelling, path: str) -> bool:
        # Where the user names the family, the module may have any name.
        elsewhere = spelling.path and family.name != self.chosen and not re.search(spelling.path, path)
        return (
            bool(elsewhere)
            or any(join(path, local) in self.checkpoint for local in spelling.absent)
            or (spelling.strangers is not None and self._has_strangers(spelling, path))
            or any(
                not any(str(value).lower() in values for value in self.checkpoint.settings_named(leaf))
                for leaf, values in spelling.settings.items()
            )
        )

    def _has_strangers(self, spelling: Spelling, path: str) -> bool:
        """Whether a module has other tensors that rule a spelling out; what a quantised weight comes with does not."""
        pattern, prefix = re.compile(spelling.strangers or ""), join(path, "x")[:-1]
        own = (*spelling.tensors, *spelling.optional)
        for name in self.ordered[bisect_left(self.ordered, prefix) :]:
            if not name.startswith(prefix):
                return False
            local = name[len(prefix) :]
            if pattern.search(local) and not any(local.startswith(known) for known in own):
                return True
        return False


def _settle(claims: list[Layer]) -> tuple[list[Layer], list[str]]:
    """Give every tensor to one claim: the one that explains more tensors; on a tie, to none."""
    owner: dict[str, Layer] = {}
    contested: dict[int, list[Layer]] = {}
    problems = []
    for claim in sorted(claims, key=_precedence):
        tensors = set(claim.names.values())
        if not (rivals := {id(owner[name]): owner[name] for name in tensors if name in owner}):
            owner.update(dict.fromkeys(tensors, claim))
            continue
        for rival in rivals.values():
            stronger = _precedence(rival)[:2] < _precedence(claim)[:2]
            if rival.family is claim.family or stronger or tensors < set(rival.names.values()):
                continue
            contested.setdefault(id(rival), [rival]).append(claim)
    disputes: dict[tuple[str, ...], list[str]] = {}
    for group in contested.values():
        disputes.setdefault(tuple(sorted({layer.family.name for layer in group})), []).append(group[0].path)
    for names, paths in disputes.items():
        more = len(paths) - 1
        others = f" and {more} more module{'s' * (more > 1)}" if more else ""
        problems.append(
            f"{module_name(paths[0])}{others}: claimed by {' and '.join(names)}; choose one with "
            + " or ".join(f"--assume family={name}" for name in names)
        )
    settled = {id(layer): layer for layer in owner.values() if id(layer) not in contested}
    return list(settled.values()), problems


def _precedence(claim: Layer) -> tuple[bool, bool, int, int, str, str]:
    """Return the sort key of claims: the user's own declaration, a setting of the file, then more tensors explained."""
    settings = len(claim.spelling.settings)
    return not claim.family.declared, not settings, -settings, -len(claim.names), claim.path, claim.family.name


def _check_assumptions(assume: Mapping[str, str], families: Sequence[Family]) -> None:
    options = [option for family in families for option in family.options]
    options.append(Option("family", tuple(family.name for family in families), "", "which family to read"))
    for name, value in assume.items():
        if not (named := [option for option in options if option.name == name]):
            known = ", ".join(sorted({option.name for option in options}))
            raise AssumptionError(
                f"--assume {name}={value}: no family has a setting {name}.",
                expected=f"one of {known}",
                instead=_meant_pair(name, value, closest(name, [option.name for option in options]), value),
            )
        if not any(option.allows(value) for option in named):
            choices = dict.fromkeys(choice for option in named for choice in option.choices)
            what = "family" if name == "family" else "value"
            raise AssumptionError(
                f"--assume {name}={value}: no such {what}.",
                expected=f"one of {', '.join(choices)}",
                instead=_meant_pair(name, value, name, closest(value, choices)),
            )


def _meant_pair(name: str, value: str, meant_name: str | None, meant_value: str | None) -> tuple[str, str] | None:
    return (f"{name}={value}", f"{meant_name}={meant_value}") if meant_name and meant_value else None


_OF_AN_OPTIMISER = re.compile(r"^state\..*\.(?:step|exp_avg|exp_avg_sq|momentum_buffer|max_exp_avg_sq)$")


def unknown_family(checkpoint: Checkpoint, recognition: Recognition) -> UnknownFamilyError:
    """Return the error for a file without a known layer: the closest family, and a map file to start from."""
    if len(checkpoint) and all(map(_OF_AN_OPTIMISER.search, checkpoint)):
        return UnknownFamilyError(
            f"{checkpoint.path.name} holds the state of an optimiser, and no weights.",
            expected="the file of weights beside it, or their directory",
            advice=f"ssmdiag inspect {shlex.quote(str(checkpoint.path.parent))}",
        )
    details = list(recognition.problems)
    shown: dict[str, NearMiss] = {}
    for miss in recognition.near_misses:
        shown.setdefault(miss.family.name, miss)
    best = max((miss.evidence for miss in shown.values()), default=0.0)
    for miss in list(shown.values())[:3]:
        told = miss.spelling.telltale in miss.present and len(miss.spelling.telltale) > 1  # a P or an h may be anything
        if miss.evidence >= best / 2 and (told or miss.evidence > 0.4):
            present = f"{', '.join(miss.present[:4])} at {miss.path or 'the top'}"
            details.append(f"closest: {miss.family.name} ({miss.spelling.name}) – {present}; {miss.reason}")
    from ssmdiag.families.map_template import starting_map

    offer = starting_map(checkpoint)
    if offer.unclear:
        details.append("no map can be offered: what could be a decay is not clear.")
        details += [f"  {line}" for line in offer.unclear]
    attention = attention_layers(checkpoint, ())
    if attention and not (details or offer.text):
        details.append(
            f"it looks like a transformer: by name {plural(len(attention), 'module')} "
            f"{'is' if len(attention) == 1 else 'are'} attention, which has no decay to read, and no tensor looks "
            "like a decay."
        )
    sample = ["", "Or save this as map.toml, correct it, and use --map map.toml:", "", *offer.text.split("\n")]
    return UnknownFamilyError(
        f"no recurrent layer recognised in {checkpoint.path.name} ({len(checkpoint):,} tensors).",
        advice='`ssmdiag families` lists what is known; README, "What it reads".',
        details=details,
        sample=sample if offer.text else (),
    )
