"""JUnit XML: a suite for each checkpoint, a case for each rule and layer, as GitLab, Jenkins and others read it.

Rules on layers have a case for every layer, rules on the whole checkpoint have one; so a case has the same name in
every run, whatever the file is called, and a dashboard can show what is newly broken and what is fixed. The class of a
case begins with the path only if the document holds several checkpoints, whose names would clash. The case `read` of
each suite is an error where something could not be read. Findings below the fail level, and those in a baseline, are
in the case's output. 64 layers under 26 rules are 1,602 cases, 121 kB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ssmdiag.errors import Failure
from ssmdiag.printable import module_name
from ssmdiag.reports.interface import Settings
from ssmdiag.rules import known_rules
from ssmdiag.rules.finding import SEVERITIES, Finding

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

WHOLE = "checkpoint"
"""Class of the cases that concern no single layer."""


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return one document with a suite for each result."""
    root = ElementTree.Element("testsuites", name="ssmdiag")
    for result in results:
        prefix = f"{result.path}: " if len(results) > 1 else ""
        root.append(_failure(result, prefix) if isinstance(result, Failure) else _suite(result, prefix, settings))
    for total in ("tests", "failures", "errors"):
        root.set(total, str(sum(int(suite.get(total, "0")) for suite in root)))
    ElementTree.indent(root)
    # Where the output is ASCII only, XML writes the rest as character references.
    encoding = "unicode" if settings.unicode else "us-ascii"
    text = ElementTree.tostring(root, encoding=encoding, xml_declaration=False)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + (text if isinstance(text, str) else text.decode("ascii")) + "\n"


def _failure(failure: Failure, prefix: str) -> ElementTree.Element:
    lines = [failure.seen, *failure.details]
    lines += [f"expected: {failure.expected}"] if failure.expected else []
    lines += [f"next: {failure.advice}"] if failure.advice else []
    lines += failure.sample
    return _counted(failure.path, [_read(prefix, lines, failure.kind)])


def _suite(diagnosis: Diagnosis, prefix: str, settings: Settings) -> ElementTree.Element:
    read = _read(prefix, diagnosis.problems, "not read")
    read.set("time", f"{diagnosis.seconds:.3f}")
    if diagnosis.guess:
        ElementTree.SubElement(read, "system-out").text = diagnosis.guess
    suite = _counted(diagnosis.path, [read, *_cases(diagnosis, prefix, settings)])
    suite.set("time", f"{diagnosis.seconds:.3f}")
    return suite


def _cases(diagnosis: Diagnosis, prefix: str, settings: Settings) -> Iterator[ElementTree.Element]:
    """Yield a case for each rule that was run, on each layer or once, and for findings of any other rule."""
    found: dict[tuple[str, str | None], list[Finding]] = {}
    layerwise = {rule.code for rule in known_rules() if rule.looks_at == "layer"}
    names = {rule.code: rule.name for rule in known_rules()}
    for finding in (*diagnosis.findings, *diagnosis.known):
        names.setdefault(finding.code, finding.rule)
        where = finding.layer if finding.code in layerwise else None
        found.setdefault((finding.code, where), []).append(finding)
    layers = [layer.name for layer in diagnosis.layers]
    grid = [(code, layer) for code in diagnosis.rules for layer in (layers if code in layerwise else (None,))]
    for code, layer in dict.fromkeys([*grid, *found]):
        name = f"{code} {names.get(code, '')}".strip()
        case = _case(
            name, f"{prefix}{WHOLE if layer is None else module_name(layer)}", found.get((code, layer), ()), settings
        )
        if (reason := diagnosis.not_judged.get(code)) and not len(case):
            ElementTree.SubElement(case, "skipped", message=f"not judged: {reason}")
        yield case


def _case(name: str, where: str, findings: Sequence[Finding], settings: Settings) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=where, name=name)
    least = SEVERITIES.index(settings.fail_on)
    failing = [finding for finding in findings if finding.rank >= least and finding.baseline != "known"]
    others = [finding for finding in findings if finding not in failing]
    if failing:
        more = f" (and {len(failing) - 1:,} more)" if len(failing) > 1 else ""
        failure = ElementTree.SubElement(case, "failure", type=failing[0].severity, message=failing[0].message + more)
        failure.text = "\n".join(_words(finding) for finding in failing)
    if others:
        ElementTree.SubElement(case, "system-out").text = "\n".join(_words(finding) for finding in others)
    return case


def _read(prefix: str, problems: Sequence[str], kind: str) -> ElementTree.Element:
    """Return the case that fails where the checkpoint, or a part of it, could not be read."""
    case = ElementTree.Element("testcase", classname=f"{prefix}{WHOLE}", name="read")
    if problems:
        more = f" (and {len(problems) - 1:,} more)" if len(problems) > 1 and kind == "not read" else ""
        error = ElementTree.SubElement(case, "error", type=kind, message=problems[0] + more)
        error.text = "\n".join(problems)
    return case


def _counted(path: str, cases: Sequence[ElementTree.Element]) -> ElementTree.Element:
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    counts = {name: str(sum(case.find(tag) is not None for case in cases)) for name, tag in counted.items()}
    suite = ElementTree.Element("testsuite", {"name": path, "tests": str(len(cases)), **counts})
    suite.extend(cases)
    return suite


def _words(finding: Finding) -> str:
    where = ": ".join(part for part in (finding.where, finding.tensor) if part)
    state = f" [{finding.baseline}]" if finding.baseline else ""
    lines = [f"{finding.severity}{state}: {where}{': ' if where else ''}{finding.message}"]
    return "\n".join([*lines, f"next: {finding.advice}", f"ssmdiag explain {finding.code}"])
