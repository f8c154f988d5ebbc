"""SARIF 2.1.0 (OASIS standard), for code scanning: one run, one result a finding.

Rule, tensor and family identify a result (`partialFingerprints`), as in a baseline; the path and the number do not, so
that the next checkpoint of the same model does not raise the same alert again. Findings in the baseline are in the log
too, as `unchanged`: an alert that is absent counts as fixed. A checkpoint that could not be read, in whole or in part,
makes the invocation unsuccessful and is a notification.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ssmdiag.checkpoint.location import is_address
from ssmdiag.errors import Failure
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.json import pick, render
from ssmdiag.reports.words import capitalised
from ssmdiag.rules import known_rules
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.rules import Rule
    from ssmdiag.rules.finding import Finding

EXACT = True
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
TAGS = {"1": "stability", "2": "memory", "3": "precision", "4": "integrity", "5": "training", "6": "observed"}
STATES = {"new": "new", "worse": "updated", "known": "unchanged"}
PROBLEM_SEVERITY = {"error": "error", "warning": "warning", "note": "recommendation"}
"""GitHub's severity names for results that are not security problems."""


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return one log with one run."""
    diagnoses = [result for result in results if not isinstance(result, Failure)]
    rules = _rules(diagnoses)
    index = {rule["id"]: position for position, rule in enumerate(rules)}
    artifacts = {address(result.path): _artifact(result) for result in results}  # each address once
    position = {uri: number for number, uri in enumerate(artifacts)}
    notifications = [notification for result in results for notification in _notifications(result)]
    version = next((diagnosis.ssmdiag_version for diagnosis in diagnoses), __version__)
    run = {
        "tool": {"driver": {"name": "ssmdiag", "version": version, "rules": rules}},
        "invocations": [
            {
                "executionSuccessful": all(said["level"] != "error" for said in notifications),
                "toolExecutionNotifications": notifications,
            },
        ],
        "artifacts": list(artifacts.values()),
        "results": [
            entry for diagnosis in diagnoses for entry in _results(diagnosis, position[address(diagnosis.path)], index)
        ],
        "columnKind": "unicodeCodePoints",
    }
    return render({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, ascii=not settings.unicode)


def fingerprint(finding: Finding) -> str:
    """Return what identifies a finding in the next run: a hash of rule, tensor (or layer) and family."""
    return hashlib.sha256("\0".join(finding.key).encode("utf-8", "surrogatepass")).hexdigest()


def address(path: str) -> str:
    """Return a path as a URI reference: relative as it was given, absolute as file://.

    >>> address("runs/step 100%.pt"), address("/models/a.pt"), address("a:b.pt")
    ('runs/step%20100%25.pt', 'file:///models/a.pt', 'a%3Ab.pt')
    """
    if is_address(path):
        return quote(path, safe="/-._~:@")
    posix = PurePath(path).as_posix()
    encoded = quote(posix.encode("utf-8", "surrogateescape"), safe="/-._~")
    return f"file://{encoded}" if encoded.startswith("/") else encoded


def _rules(diagnoses: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    """Return the rules that were run, and unknown rules that findings name."""
    run = {code for diagnosis in diagnoses for code in diagnosis.rules}
    found = {f.code: f.rule for diagnosis in diagnoses for f in (*diagnosis.findings, *diagnosis.known)}
    known = {rule.code: rule for rule in known_rules()}
    return [
        _rule(known[code]) if code in known else {"id": code, "name": _pascal(found.get(code, code))}
        for code in sorted(run | set(found))
    ]


def _rule(rule: Rule) -> dict[str, Any]:
    parts = (("Formula", rule.formula), ("Why it hurts", rule.why), ("What to do", rule.fix), ("Example", rule.example))
    text = "\n\n".join(f"{heading}: {body}" for heading, body in parts)
    markdown = "\n\n".join(f"**{heading}.** {body}" for heading, body in parts)
    return {
        "id": rule.code,
        "name": _pascal(rule.name),
        "shortDescription": {"text": capitalised(rule.summary)},
        "fullDescription": {"text": rule.why},
        "help": {"text": text, "markdown": markdown},
        "defaultConfiguration": {"level": rule.severity},
        "properties": {
            "tags": ["state-space-model", *([TAGS[rule.code[3]]] if rule.code[3:4] in TAGS else [])],
            "problem.severity": PROBLEM_SEVERITY[rule.severity],
        },
    }


def _results(diagnosis: Diagnosis, artifact: int, index: dict[str, int]) -> Iterator[dict[str, Any]]:
    seen: Counter[str] = Counter()
    for finding in (*diagnosis.findings, *diagnosis.known):
        mark = fingerprint(finding)
        seen[mark] += 1
        logical = [
            {"name": name.rpartition(".")[2] or name, "fullyQualifiedName": name, "kind": kind}
            for name, kind in ((finding.layer, "module"), (finding.tensor, "tensor"))
            if name
        ]
        physical = _physical(diagnosis.path, artifact)
        subject = f"{finding.where}: " if finding.where else ""
        yield {
            "ruleId": finding.code,
            "ruleIndex": index[finding.code],
            "level": finding.severity,
            "message": {"text": f"{subject}{finding.message}. {capitalised(finding.advice)}"},
            "locations": [{"physicalLocation": physical, **({"logicalLocations": logical} if logical else {})}],
            # GitHub identifies a result by the second alone; if absent, it computes it from a line of the source.
            "partialFingerprints": {"ssmdiag/v1": mark, "primaryLocationLineHash": f"{mark[:16]}:{seen[mark]}"},
            "properties": {
                **pick(finding, "family count of value threshold"),
                **({"guess": diagnosis.guess} if diagnosis.guess else {}),
            },
            **({"baselineState": STATES[finding.baseline]} if finding.baseline else {}),
        }


def _physical(path: str, artifact: int) -> dict[str, Any]:
    # GitHub shows no result without a line; a checkpoint has none, so it is the first.
    return {"artifactLocation": {"uri": address(path), "index": artifact}, "region": {"startLine": 1}}


def _artifact(result: Diagnosis | Failure) -> dict[str, Any]:
    data: dict[str, Any] = {"location": {"uri": address(result.path)}, "roles": ["analysisTarget"]}
    return data if isinstance(result, Failure) else data | {"length": result.size}


def _notifications(result: Diagnosis | Failure) -> Iterator[dict[str, Any]]:
    if isinstance(result, Failure):
        expected = f"Expected {result.expected}." if result.expected else ""
        said = [(" ".join(filter(None, (result.seen, *result.details, expected, result.advice))), result.kind)]
    else:
        said = [(problem, "NotRead") for problem in result.problems]
        said += [(result.guess, "Guess")] if result.guess else []
    for text, kind in said:
        yield {
            "level": "warning" if kind == "Guess" else "error",
            "message": {"text": text},
            "descriptor": {"id": kind},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": address(result.path)}}}],
        }


def _pascal(name: str) -> str:
    """Return a rule's name as SARIF wants it: `unstable-mode` → `UnstableMode` (§3.49.7)."""
    return "".join(word[:1].upper() + word[1:] for word in name.split("-"))
