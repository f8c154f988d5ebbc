"""Settings → TOML: what `ssmdiag config show` prints."""

from __future__ import annotations

import json
from typing import Any

from ssmdiag.check.configuration import COMMAND_LINE, Configuration
from ssmdiag.printable import printable
from ssmdiag.rules import known_rules
from ssmdiag.rules.selection import codes_of


def as_toml(configuration: Configuration) -> str:
    """Return the settings in effect as an equivalent ssmdiag.toml, each with its source.

    Raises ConfigurationError as `Configuration.selection` does.
    """
    selection = configuration.selection()
    running = {rule.code for rule in selection.rules}
    unset = {"context-length": "what the checkpoint's settings say", "baseline": "none"}
    rows: list[tuple[str, str]] = []
    for key in ("select", "ignore", "fail-on", "format", "context-length", "baseline"):
        value = getattr(configuration, key.replace("-", "_"))
        source = configuration.sources.get(key, "default: all rules" if key == "select" else "default")
        rows.append((f"# {key}", f"not set: {unset[key]}") if value is None else (f"{key} = {_literal(value)}", source))
    rows += [("", ""), ("[per-layer-ignores]", configuration.sources.get("per-layer-ignores", "default: none"))]
    rows += [(f"{_literal(glob)} = {_literal(keys)}", "") for glob, keys in configuration.per_layer_ignores.items()]
    for rule in known_rules():
        if rule.thresholds:
            remark = rule.name if rule.code in running else f"{rule.name}, which is not run"
            rows += [("", ""), (f"[thresholds.{rule.code}]", remark)]
            rows += [
                (f"{name} = {_literal(value)}", _threshold_source(configuration, rule.code, name))
                for name, value in selection.limits[rule.code].items()
            ]
    wide = min(max(len(setting) for setting, _ in rows), 40)
    said = [f"{setting:<{wide}}  # {source}" if source else setting for setting, source in rows]
    return "\n".join([printable(f"# {configuration.path or 'no file'}"), *said]) + "\n"


def _threshold_source(configuration: Configuration, code: str, name: str) -> str:
    source = "default"
    for key, values in configuration.thresholds.items():
        if name in values and code in codes_of([key]):
            source = configuration.sources.get(f"thresholds.{key}.{name}", COMMAND_LINE)
    return source


def _literal(value: Any) -> str:
    """Return a value as TOML; JSON's strings are TOML's but for DEL."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
