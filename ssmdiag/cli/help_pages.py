"""What --help shows besides the options themselves: one line a command, groups, examples, exit codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SUMMARIES = {
    "inspect": "How long each recurrent layer of a checkpoint remembers.",
    "check": "What is wrong with its memory; the exit code fails a build.",
    "capacity": "How far back the input can be rebuilt from the state.",
    "compare": "A run's trend, different models, or a conversion to prove.",
    "watch": "A line for each checkpoint of a run, as they are written.",
    "probe": "What a live model retains of real texts.",
    "kernel": "One layer's memory kernel, or all of them to a file.",
    "retrain": "Train one model under several maps of its rates.",
    "families": "The model families that are read.",
    "rules": "The rules of `ssmdiag check`.",
    "explain": "A rule, or a word of the reports, in plain words.",
    "config": "Settings of `ssmdiag check`.",
}
"""One line on each command, for the list of them."""

FLAGS = {"--json": ("--format", "json"), "--no-color": ("--color", "never"), "--no-colour": ("--color", "never")}
"""Flags that stand for an option and its value, in every command that has it."""

READING, MANY, REPORT, OTHER = "Reading", "Many checkpoints", "Report", "Options"
_GROUPS: Mapping[str, Sequence[str]] = {
    READING: ("length", "assume", "map_file", "every_channel", "device"),
    MANY: ("jobs", "shard", "resume", "retry_errors"),
    REPORT: ("format", "output", "also", "all_layers", "plots", "full", "color", "quiet", "verbose", "help"),
}
_OWN_GROUPS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "check": {
        "What fails": ("fail_on", "select", "ignore", "baseline", "write_baseline", "probe", "config", "isolated"),
    },
    "compare": {"What is compared": ("strict", "tolerance", "fail_on", "memory")},
    "config show": {OTHER: ("config", "isolated", "help")},
    "watch": {"Watching": ("interval", "idle", "fail_on")},
    "kernel": {"What is extracted": ("layer", "channel", "length", "memory_limit")},
    "capacity": {
        "What is asked": ("layer", "length", "wanted"),
        "The rounded state": ("state_dtype", "input_mean", "input_scale", "int8_scale"),
    },
    "probe": {
        "Model and texts": ("text", "compare", "model", "data", "length", "texts", "batch", "dtype", "device_map"),
        "What is measured": ("cuts", "channels", "positions", "state_channels", "seed", "assume", "device"),
    },
    "retrain": {
        "Arms; each can be given several times": (
            "param", "freeze", "init", "lr", "recurrence_lr", "weight_decay", "seed",
        ),
        "Model": ("model", "width", "modes", "depth", "assume"),
        "What it learns": ("task", "text", "data", "length", "samples"),
        "Training": ("steps", "batch", "together", "device", "perturb"),
        "What is kept": ("output", "resume", "checkpoint_every"),
    },
}  # fmt: skip

EXAMPLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "inspect": [
        ("ssmdiag inspect model.safetensors", "One file, or the directory of a model"),
        ("ssmdiag inspect model.safetensors --context 32k", "Against a context of 32,768 tokens"),
        ("ssmdiag inspect model.safetensors --json", "For a program"),
    ],
    "check": [
        ("ssmdiag check model.safetensors", "In CI: exit 1 at an error"),
        ("ssmdiag check runs/*.safetensors --fail-on warning", "Stricter, over several files"),
        ("ssmdiag check model.safetensors --also sarif=out.sarif", "Also for code scanning"),
    ],
    "capacity": [
        ("ssmdiag capacity model.safetensors", "How far back the input can be rebuilt"),
        ("ssmdiag capacity model.safetensors --state-dtype int8", "With the state in eight bits"),
        ("ssmdiag capacity model.safetensors --layer 0 --for-length 8k", "Which step Δ would reach 8,192"),
    ],
    "compare": [
        ("ssmdiag compare runs", "The checkpoints of a run"),
        ("ssmdiag compare original.safetensors converted.safetensors --strict", "Prove a conversion"),
        ("ssmdiag compare runs --fail-on converging", "Exit 1 if a layer converges to the boundary"),
    ],
    "watch": [
        ("ssmdiag watch runs", "Until Ctrl-C"),
        ("ssmdiag watch runs --fail-on crossing --idle 30", "Beside a training job, until it is quiet"),
    ],
    "probe": [
        ("ssmdiag probe mamba-tiny --text book.txt", "A model that transformers wrote, on a text"),
        ("ssmdiag probe mamba-tiny --text book.txt --compare code.txt", "And on another text"),
    ],
    "kernel": [
        ("ssmdiag kernel model.safetensors --layer 0", "One layer on the screen"),
        ("ssmdiag kernel model.safetensors -o kernels.npz --context 4k", "Every layer to a file"),
    ],
    "retrain": [
        ("ssmdiag retrain --task lf-poly --param best", "`best` beside exp, on long memory"),
        ("ssmdiag retrain --param exp --param best --seed 0 --seed 1", "Two maps, two seeds each"),
        ("ssmdiag retrain --freeze none --freeze eigenvalues -o runs/frozen", "With frozen rates; keep all"),
    ],
    "families": [
        ("ssmdiag families", "All of them"),
        ("ssmdiag families mamba", "One family's tensors and settings"),
    ],
    "rules": [("ssmdiag rules", "All of them"), ("ssmdiag rules --json", "For a program")],
    "explain": [
        ("ssmdiag explain", "What can be explained"),
        ("ssmdiag explain horizon", "A word of the reports"),
        ("ssmdiag explain 404", "A rule: also SSM404, SSM4 or its name"),
    ],
    "config show": [("ssmdiag config show > ssmdiag.toml", "Begin a settings file")],
    "": [
        ("ssmdiag inspect model.safetensors", "Begin here"),
        ("ssmdiag help check", "The help of one command"),
        ("ssmdiag explain", "What the words and the rules mean"),
    ],
}
"""Command lines, each with what it is for."""

_NOT_READ = "A path, or a part of one, could not be read; the rest is reported."
EXITS: Mapping[str, Sequence[tuple[int, str]]] = {
    "inspect": [(0, "Read."), (2, _NOT_READ)],
    "check": [(0, "Clean."), (1, "Findings at --fail-on or above."), (2, _NOT_READ)],
    "capacity": [(0, "Read."), (2, _NOT_READ)],
    "compare": [
        (0, "Read."),
        (1, "--strict or --fail-on found what it looks for, or what --strict is to prove could not be seen."),
        (2, _NOT_READ),
    ],
    "watch": [
        (0, "Ended by Ctrl-C, or after --idle."),
        (1, "--fail-on found what it looks for."),
        (2, "The directory cannot be watched; a checkpoint that cannot be read is a remark, and tried again."),
    ],
    "probe": [(0, "Measured."), (2, "Nothing could be measured, or a layer not; the rest is reported.")],
    "kernel": [(0, "Written or shown."), (2, _NOT_READ)],
    "retrain": [(0, "Trained."), (2, "It cannot be trained as asked."), (130, "Stopped by Ctrl-C; --resume goes on.")],
    "": [
        (0, "Nothing to object to."),
        (1, "Findings: of check, compare and watch alone."),
        (2, "Something could not be read or done."),
    ],
}
"""What the exit codes of a command mean."""


def groups_of(command: str) -> dict[str, Sequence[str]]:
    """Return the headings of a command's --help, in their order, each with the options it lists."""
    return {**_OWN_GROUPS.get(command, {}), **_GROUPS}
