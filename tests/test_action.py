"""The GitHub Action's scripts run in bash as a runner runs them, and the pre-commit hook takes the right files."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft7Validator
from pre_commit.clientlib import load_manifest
from pre_commit.commands.run import Classifier
from safetensors.torch import load_file, save_file

from ssmdiag.cli import main
from tests.schemas import schema

ROOT = Path(__file__).parent.parent
ACTION = ROOT / ".github" / "actions" / "check" / "action.yml"
EXAMPLES = ROOT / "examples"
DATA: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in DATA["runs"]["steps"]}


class Runner:
    """A job on a runner: its workspace, its files for commands, its step environment."""

    def __init__(self, folder: Path, path: str) -> None:
        self.workspace, self.temp = folder / "my work space", folder / "temp"
        self.files = {name: folder / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_PATH")}
        self.workspace.mkdir()
        self.temp.mkdir()
        for file in self.files.values():
            file.touch()
        self.environment = {
            "PATH": path,
            "HOME": os.environ.get("HOME", "/"),
            "CI": "true",
            "PYTHONUTF8": "1",
            "RUNNER_TEMP": str(self.temp),
            "GITHUB_ACTION_PATH": str(ACTION.parent),
            **{name: str(file) for name, file in self.files.items()},
        }

    def step(self, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        """Run one step with the given inputs, the others at their defaults, as `shell: bash` does."""
        step = STEPS[name]
        given = {key: value.get("default") for key, value in DATA["inputs"].items()}
        given |= {key.replace("_", "-"): value for key, value in inputs.items()}

        def filled(text: str) -> str:
            return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: given[match[1]], text)

        script = self.temp / "step.sh"
        script.write_text(step["run"], encoding="utf-8")
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=self.workspace,
            env=self.environment | {key: filled(value) for key, value in step.get("env", {}).items()},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )

    @property
    def outputs(self) -> dict[str, str]:
        lines = self.files["GITHUB_OUTPUT"].read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def summary(self) -> str:
        return self.files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path, f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def with_a_nan(path: Path) -> Path:
    state = load_file(EXAMPLES / "s4d-digits" / "step-02000.safetensors")
    name = next(name for name in state if name.endswith("log_A_real"))
    state[name].view(-1)[0] = torch.nan
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_action_obeys_the_published_schema() -> None:
    validator = Draft7Validator(schema("https://json.schemastore.org/github-action.json"))
    assert [error.message for error in validator.iter_errors(DATA)] == []
    assert list(validator.iter_errors({**DATA, "runs": {"using": "composite", "steps": [{"run": "x"}]}}))


def test_no_input_is_pasted_into_a_script_and_every_input_is_used() -> None:
    scripts = "".join(step["run"] for step in STEPS.values())
    assert "${{" not in scripts
    used = re.findall(r"inputs\.([a-z-]+)", json.dumps([step.get("env", {}) for step in STEPS.values()]))
    assert sorted(used) == sorted(DATA["inputs"])
    for value in DATA["outputs"].values():
        assert re.fullmatch(r"\$\{\{ steps\.check\.outputs\.(sarif|exit-code) \}\}", value["value"])


@pytest.mark.slow
def test_clean_checkpoints_pass_and_leave_a_summary_and_a_log(runner: Runner) -> None:
    (runner.workspace / "runs").symlink_to(EXAMPLES / "lru-digits")
    run = runner.step("Check", paths="runs/step-01[05]*.safetensors\r\n\nruns/step-02000.safetensors\n")
    assert (run.returncode, run.stderr) == (0, "")
    assert not re.search("^::", run.stdout, re.MULTILINE)
    assert runner.outputs == {"sarif": str(runner.temp / "ssmdiag.sarif"), "exit-code": "0"}
    log = json.loads((runner.temp / "ssmdiag.sarif").read_text(encoding="utf-8"))
    assert [artifact["location"]["uri"] for artifact in log["runs"][0]["artifacts"]] == [
        f"runs/step-0{number}.safetensors" for number in (1000, 1500, 2000)
    ]
    assert runner.summary.startswith("**3 checkpoints: 3 OK**")
    assert runner.summary.count("### `runs/step-") == 3


@pytest.mark.slow
def test_a_broken_checkpoint_fails_whatever_its_name(runner: Runner) -> None:
    name = "it's $(touch pwned) `touch pwned`; a, b%/model *.safetensors"
    with_a_nan(runner.workspace / name)
    run = runner.step(
        "Check", paths=name, fail_on="note", args="--select SSM4\n  --length\t64", sarif="logs & more.sarif"
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout.startswith(
        "::error file=it's $(touch pwned) `touch pwned`; a%2C b%25/model *.safetensors,title=SSM4"
    )
    assert runner.outputs == {"sarif": "logs & more.sarif", "exit-code": "1"}
    run_log = json.loads((runner.workspace / "logs & more.sarif").read_text(encoding="utf-8"))["runs"][0]
    assert {rule["id"][:4] for rule in run_log["tool"]["driver"]["rules"]} == {"SSM4"}
    assert "SSM401 `non-finite`" in runner.summary
    assert not list(runner.workspace.rglob("pwned"))


@pytest.mark.slow
def test_what_cannot_be_diagnosed_fails_with_two_and_still_leaves_a_log(runner: Runner) -> None:
    (runner.workspace / "set.toml").write_text('fail-on = "note"\n')
    run = runner.step("Check", paths="gone-*.pt", config="set.toml")
    assert run.returncode == 2
    assert run.stdout.startswith("::error file=gone-*.pt,title=not diagnosed::gone-*.pt does not exist.")
    assert runner.outputs["exit-code"] == "2"
    log = json.loads(Path(runner.outputs["sarif"]).read_text(encoding="utf-8"))
    assert not log["runs"][0]["invocations"][0]["executionSuccessful"]
    assert runner.summary.startswith("**Could not be diagnosed** – `gone-*.pt`")


def test_every_input_is_one_argument_and_a_crash_leaves_no_old_log(tmp_path: Path) -> None:
    says_its_arguments = script(tmp_path / "tools" / "ssmdiag", 'printf "%s\\n" "$@"; exit 2')
    bare = Runner(tmp_path, f"{says_its_arguments.parent}:/usr/bin:/bin")
    (bare.temp / "ssmdiag.sarif").write_text("{}")
    run = bare.step("Check", paths="a b.pt\n*.pt\n-x", baseline="my base.json", config="c d.toml", fail_on="warning")
    assert run.returncode == 2
    assert run.stdout.splitlines() == [
        "check", "--format", "github", "--also", f"markdown={bare.temp}/ssmdiag-summary.md",
        "--also", f"sarif={bare.temp}/ssmdiag.sarif", "--fail-on", "warning", "--baseline", "my base.json",
        "--config", "c d.toml", "--", "a b.pt", "*.pt", "-x",
    ]  # fmt: skip
    assert bare.outputs == {"exit-code": "2"}
    assert bare.summary == ""


def test_no_path_is_an_error_of_its_own(runner: Runner) -> None:
    run = runner.step("Check", paths="\n\n")
    assert run.returncode == 2
    assert run.stdout == "::error title=ssmdiag::no path given: set the input paths\n"


def test_an_ssmdiag_that_is_there_is_not_installed_again(runner: Runner) -> None:
    assert runner.step("Install ssmdiag").returncode == 0
    assert runner.files["GITHUB_PATH"].read_text() == ""
    assert not (runner.temp / "ssmdiag-venv").exists()


def test_without_one_this_version_is_installed_into_an_environment_of_its_own(tmp_path: Path) -> None:
    inner = 'printf \'#!/bin/sh\\necho "$@"\\n\' > "$3/bin/python"'
    python = script(tmp_path / "tools" / "python3", f'mkdir -p "$3/bin"; {inner}; chmod +x "$3/bin/python"')
    bare = Runner(tmp_path, f"{python.parent}:/usr/bin:/bin")
    run = bare.step("Install ssmdiag")
    assert run.returncode == 0, run.stderr
    asked = shlex.split(run.stdout)
    assert asked[:-1] == ["-m", "pip", "install", "--quiet"]
    assert (Path(asked[-1]) / "pyproject.toml").samefile(ROOT / "pyproject.toml")
    assert bare.files["GITHUB_PATH"].read_text() == f"{bare.temp}/ssmdiag-venv/bin\n"
    # Where the folder was copied to another repository, that one is not ssmdiag, and is not installed for it.
    bare.environment["GITHUB_ACTION_PATH"] = str(bare.workspace / ".github" / "actions" / "check")
    assert shlex.split(bare.step("Install ssmdiag").stdout)[-1] == "ssmdiag"


@pytest.fixture
def hook() -> dict[str, Any]:
    (hook,) = load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))
    return dict(hook)


def test_the_hook_takes_checkpoints_and_nothing_else(
    hook: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = [
        "model.safetensors", "my run/step 1.pt", "a.pth", "a.ckpt", "a.npz", "hub/pytorch_model.bin",
        "model.safetensors.index.json",
    ]  # fmt: skip
    left = [
        "config.json", "a.py", "data.bin", "training_args.bin", "optimizer.pt", "rng_state_0.pth", "a.pt.md",
        "model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin",
    ]  # fmt: skip
    for name in taken + left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00")
    monkeypatch.chdir(tmp_path)
    found = Classifier.from_config(taken + left, "", "^$").filenames_for_hook(Hook(hook))
    assert sorted(found) == sorted(taken)


class Hook:
    """What pre-commit's classifier asks of a hook."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        vars(self).update(manifest)


def test_the_hooks_entry_fails_on_a_broken_checkpoint_and_is_silent_on_a_clean_one(
    hook: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(path: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [*shlex.split(hook["entry"]), str(path)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().out

    assert run(EXAMPLES / "lru-digits" / "step-02000.safetensors") == (0, "")
    code, said = run(with_a_nan(tmp_path / "a b.safetensors"))
    assert code == 1
    assert "SSM401" in said
