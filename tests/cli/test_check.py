"""`ssmdiag check` as CI runs it: exit codes, what is said, settings, baseline, formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssmdiag.reports import formats

Run = Callable[..., tuple[int, str, str]]
EXAMPLE = Path(__file__).parents[2] / "examples" / "lru-digits" / "step-02000.safetensors"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)


def stable_ssm(path: Path, real: float = -0.5, *, growing: int = 0) -> Path:
    """Write two layers of a StableSSM read as `direct`, some of whose modes grow."""
    state = {}
    for number in range(2):
        rates = torch.full((16, 8), real) - 0.01 * torch.arange(8)
        rates[0, :growing] = 0.05
        state |= {
            f"stablessm_layers.{number}.kernel.log_dt": torch.linspace(-6.9, -2.3, 16),
            f"stablessm_layers.{number}.kernel.log_A_real": rates,
            f"stablessm_layers.{number}.kernel.A_imag": torch.pi * torch.arange(8).float().repeat(16, 1),
            f"stablessm_layers.{number}.kernel.C": torch.ones(16, 8, 2),
        }
    save_file(state, path)
    return path


def test_a_clean_checkpoint_exits_zero_and_says_what_was_looked_at(run: Run) -> None:
    code, out, err = run("check", EXAMPLE)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "OK  remembers about 120 steps, further than its context of 64"
    assert " rules on step-02000.safetensors" in " ".join(out.split())
    assert "passes: nothing at error or above" in out


def test_growing_modes_exit_one_and_name_rule_layer_and_remedy(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("check", stable_ssm(tmp_path / "bad.safetensors", growing=3))
    assert code == 1
    assert out.startswith("PROBLEM  assuming parameterization = direct: 6 of 256 modes in both layers grow")
    assert "fails: findings at error (--fail-on); " in out
    assert out.splitlines()[-1].endswith("bad.safetensors")
    assert "SSM101 error    both layers: 3 of 128 modes grow with every step" in out
    assert "Go back to a checkpoint before it crossed" in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_cannot_be_diagnosed_exits_two_whatever_else_was_found(run: Run, tmp_path: Path) -> None:
    bad = stable_ssm(tmp_path / "bad.safetensors", growing=3)
    code, out, err = run("check", bad, tmp_path / "gone.pt")
    assert code == 2
    assert "SSM101" in out
    assert "2 checkpoints: 1 with problems, 1 not read; fails: not everything could be read" in out
    assert "does not exist" in err


def test_fail_on_decides_between_zero_and_one(run: Run, tmp_path: Path) -> None:
    state = load_file(EXAMPLE)
    name = next(key for key in state if key.endswith("nu_log"))
    state[name] = state[name].bfloat16()
    path = tmp_path / "cast.safetensors"
    save_file(state, path)
    arguments = ("check", path, "--select", "SSM301")
    codes = [run(*arguments, "--fail-on", level)[0] for level in ("error", "warning", "note")]
    assert codes == sorted(codes)
    assert (codes[0], codes[-1]) == (0, 1)


@pytest.mark.slow
def test_select_and_ignore_choose_rules_by_code_prefix_and_name(run: Run, tmp_path: Path) -> None:
    bad = stable_ssm(tmp_path / "bad.safetensors", growing=3)
    assert run("check", bad, "--select", "SSM4")[0] == 0
    assert run("check", bad, "--select", "unstable-mode")[0] == 1
    assert run("check", bad, "--ignore", "SSM1")[0] == 0
    code, _, err = run("check", bad, "--select", "SSM999")
    assert code == 2
    assert "SSM999" in err


def test_settings_come_from_the_nearest_file_and_can_be_left_aside(run: Run, tmp_path: Path) -> None:
    bad = stable_ssm(tmp_path / "bad.safetensors", growing=3)
    (tmp_path / "ssmdiag.toml").write_text('ignore = ["SSM101"]\n')
    assert run("check", bad)[0] == 0
    assert run("check", bad, "--isolated")[0] == 1
    assert "SSM101" in run("config", "show")[1]
    (tmp_path / "ssmdiag.toml").write_text('ignroe = ["SSM101"]\n')
    code, _, err = run("check", bad)
    assert code == 2
    assert "ignroe" in err


@pytest.mark.slow
def test_a_layer_can_be_left_out_by_its_path(run: Run, tmp_path: Path) -> None:
    bad = stable_ssm(tmp_path / "bad.safetensors", growing=3)
    (tmp_path / "ssmdiag.toml").write_text('[per-layer-ignores]\n"stablessm_layers.0*" = ["SSM101"]\n')
    code, out, _ = run("check", bad)
    assert code == 1
    assert "SSM101 error    layer 1: 3 of 128" in out


@pytest.mark.slow
def test_a_baseline_lets_known_findings_pass_and_stops_new_and_worse_ones(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stable_ssm(tmp_path / "step-1.safetensors", growing=3)
    known = tmp_path / "baseline.json"
    code, out, err = run("check", first, "--baseline", known, "--write-baseline")
    assert code == 0
    assert "2 more in the baseline" in " ".join(out.split())
    assert "2 accepted" in err
    assert run("check", stable_ssm(tmp_path / "step-2.safetensors", growing=3), "--baseline", known)[0] == 0
    code, out, _ = run("check", stable_ssm(tmp_path / "step-3.safetensors", growing=5), "--baseline", known)
    assert code == 1
    assert "worse than the baseline" in " ".join(out.split())
    healthy = stable_ssm(tmp_path / "step-4.safetensors")
    written = known.read_text()
    monkeypatch.setenv("CI", "true")
    assert run("check", healthy, "--baseline", known)[0] == 0
    assert known.read_text() == written, "written under CI"
    monkeypatch.delenv("CI")
    assert run("check", healthy, "--baseline", known)[0] == 0
    assert json.loads(known.read_text())["findings"] == []


def test_a_missing_baseline_is_an_error_and_not_an_empty_one(run: Run, tmp_path: Path) -> None:
    code, _, err = run("check", EXAMPLE, "--baseline", tmp_path / "nothing.json")
    assert code == 2
    assert "--write-baseline" in err
    assert run("check", EXAMPLE, "--write-baseline")[0] == 2


@pytest.mark.one_in(7)
@pytest.mark.parametrize("format", sorted(formats()))
def test_every_format_is_offered_and_keeps_the_exit_code(run: Run, tmp_path: Path, format: str) -> None:
    bad = stable_ssm(tmp_path / "bad.safetensors", growing=3)
    target = tmp_path / "report"
    code, out, _ = run("check", bad, "--format", format, "--output", target)
    assert (code, out) == (1, "")
    assert "SSM101" in target.read_text(encoding="utf-8")


def test_one_run_writes_several_formats(run: Run, tmp_path: Path) -> None:
    bad = stable_ssm(tmp_path / "bad.safetensors", growing=3)
    code, out, _ = run("check", bad, "--also", "json=a b.json", "--also", f"sarif={tmp_path}/x=y.sarif")
    assert code == 1
    assert "SSM101 error" in out
    assert json.loads((tmp_path / "a b.json").read_text())["findings"][0]["code"] == "SSM101"
    assert json.loads((tmp_path / "x=y.sarif").read_text())["version"] == "2.1.0"
    for wrong in ("json", "xml=a.xml", "json=", "text=a.txt"):
        code, _, err = run("check", bad, "--also", wrong)
        assert code == 2
        assert f"--also {wrong}: not understood" in err


def test_quiet_says_nothing_of_clean_checkpoints(run: Run) -> None:
    code, out, err = run("check", EXAMPLE, "--quiet")
    assert (code, out, err) == (0, "", "")


def test_rules_and_explain_know_every_rule(run: Run) -> None:
    listed = run("rules")[1]
    for rule in json.loads(run("rules", "--format", "json")[1]):
        assert rule["code"] in listed
        page = run("explain", rule["name"])[1]
        assert page.startswith(f"{rule['code']} {rule['name']}")
        assert "https://" in page
    code, _, err = run("explain", "SSM000")
    assert code == 2
    assert "SSM000" in err
    assert "next: ssmdiag explain" in err


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("options", "tails"),
    [([], False), (["-f", "sarif"], False), (["-f", "json"], True), (["--also", "markdown=x.md"], True)],
)
def test_the_law_of_what_remains_is_looked_for_where_it_is_told(
    options: list[str], tails: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssmdiag.diagnosis

    asked: list[bool] = []
    diagnose = ssmdiag.diagnosis.diagnose

    def spied(*arguments: Any, **given: Any) -> Any:
        asked.append(given["tails"])
        return diagnose(*arguments, **given)

    monkeypatch.setattr(ssmdiag.diagnosis, "diagnose", spied)
    assert run("check", str(EXAMPLE), *options)[0] == 0
    assert asked == [tails]
