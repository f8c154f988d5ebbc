"""Names that commands, options and values have in other tools, and what is meant by them here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssmdiag.errors import closest

ALSO_CALLED = {
    "gpu": ["cuda"], "md": ["markdown"], "txt": ["text"], "xml": ["junit"],
    "bfloat16": ["bf16"], "bf16": ["bfloat16"], "float16": ["fp16"], "half": ["fp16", "float16"], "fp16": ["float16"],
    "fp32": ["float32"], "float": ["float32"], "double": ["float64"], "fp64": ["float64"], "strict": ["warning"],
}  # fmt: skip
"""Values by other names."""
OTHER_OPTIONS = {
    "--fail-on": "error-level exit-on fail-level level min-severity severity",
    "--ignore": "disable exclude skip",
    "--select": "enable include only rule rules",
    "--length": "block-size ctx ctx-len max-position-embeddings max-seq-len n-ctx seq-len seq-length seqlen "
    "sequence-length window",
    "--format": "as output-format report-format type",
    "--output": "dest out output-file save write",
    "--jobs": "n-jobs num-workers parallel processes threads workers",
    "--layer": "layers",
    "--map": "mapping",
    "--quiet": "silent",
}
"""What an option is called in other tools."""
OF_A_PATH = frozenset(["checkpoint", "ckpt", "file", "filename", "input", "model", "model-path", "path", "weights"])
"""Options of other tools for what is an argument here."""
OTHER_VERBS = {
    "inspect": "analyse analyze cat describe diagnose dump info load open print read report run scan show stats "
    "summarise summarize summary view",
    "check": "audit doctor lint test validate verify",
    "compare": "diff trend",
    "watch": "follow monitor tail",
    "kernel": "draw plot",
    "retrain": "fit train",
    "families": "architectures list ls models supported",
    "explain": "glossary terms what why words",
    "rules": "checks codes",
    "config": "configuration settings",
}
"""What a command is called in other tools."""


def called_elsewhere(name: str, others: Mapping[str, str], known: Sequence[str]) -> str | None:
    """Return which of the known commands or options has this name in another tool; None where none has.

    >>> called_elsewhere("seq-len", OTHER_OPTIONS, ["--length"]), called_elsewhere("seq-len", OTHER_OPTIONS, [])
    ('--length', None)
    """
    return next((own for own, names in others.items() if own in known and name.lower() in names.split()), None)


def value_meant(name: str, choices: Sequence[str], alone: bool = False) -> str | None:
    """Return the value that was meant: one by another name, or, unless it stands `alone`, one that is like it."""
    known = [value for value in (name, *ALSO_CALLED.get(name, ())) if value in choices]
    return known[0] if known else None if alone else closest(name, choices)
