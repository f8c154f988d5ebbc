"""What must answer at once answers without torch and plotext, which take seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import sys
from ssmdiag.cli import main
sys.argv = ["ssmdiag", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted({{"torch", "plotext", "numpy", "safetensors"}} & set(sys.modules))
print("imported:", heavy, file=sys.stderr)
"""


def imports(*arguments: str) -> str:
    code = PROBE.format(arguments=list(arguments))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stderr.strip().splitlines()[-1]


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["families"], ["families", "mamba"], ["inspect", "--help"], ["compare", "--help"]],
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    assert imports(*arguments) == "imported: []"


@pytest.mark.slow
def test_the_probe_sees_torch_where_it_is_imported(tmp_path) -> None:
    import torch
    from safetensors.torch import save_file

    state = {
        "layers.0.A_log": torch.zeros(4, 2),
        "layers.0.dt_proj.bias": torch.zeros(4),
        "layers.0.dt_proj.weight": torch.zeros(4, 1),
        "layers.0.x_proj.weight": torch.zeros(5, 4),
    }
    save_file(state, tmp_path / "m.safetensors")
    assert "torch" in imports("inspect", "--no-plots", str(tmp_path / "m.safetensors"))


@pytest.mark.slow
def test_public_names_are_imported_on_first_use() -> None:
    code = "import sys, ssmdiag; assert 'torch' not in sys.modules; ssmdiag.Recurrence; ssmdiag.known_families(); "
    code += "assert 'torch' not in sys.modules; ssmdiag.diagnose; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists() -> None:
    import ssmdiag

    assert all(getattr(ssmdiag, name) is not None for name in ssmdiag.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ssmdiag.nothing  # noqa: B018
