"""SSM401: NaN and infinity, wherever in a recurrent layer they stand."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from tests.rules.healthy import initial_state, save
from tests.rules.planting import fill, findings_of, plant

CODE = "SSM401"


@pytest.mark.one_in(4)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("local", ["A_log", "dt_proj.bias", "D", "conv1d.weight", "x_proj.weight"])
def test_one_broken_value_is_found_in_every_tensor_of_the_layer(value: float, local: str, tmp_path: Path) -> None:
    def one(values: torch.Tensor) -> torch.Tensor:
        values.view(-1)[7] = value
        return values

    (finding,) = findings_of(CODE, plant(tmp_path, "mamba", {f"1.mixer.{local}": one}))
    assert (finding.severity, finding.layer, finding.count) == ("error", "model.layers.1.mixer", 1)
    assert finding.message.startswith(f"{local}: 1 of ")
    assert finding.message.endswith("values is NaN or infinite")
    assert finding.tensor == f"model.layers.1.mixer.{local}"


def test_a_module_with_two_scans_is_reported_once(tmp_path: Path) -> None:
    broken = {"1.mixer.A_log": fill(torch.nan, 3), "1.mixer.A_b_log": fill(torch.nan, 3), "1.mixer.D": fill(torch.nan)}
    found = findings_of(CODE, plant(tmp_path, "vim", broken))
    assert sorted(finding.tensor.rpartition(".")[2] for finding in found if finding.tensor) == ["A_b_log", "A_log", "D"]


def test_half_precision_and_complex_values_are_looked_at(tmp_path: Path) -> None:
    half = plant(tmp_path / "half", "mamba2", {"2.mixer.A_log": lambda w: (w + torch.inf).bfloat16()})
    assert findings_of(CODE, half)[0].count == 32
    complex_ = plant(tmp_path / "c", "annotated-s4", {"layers_1.seq.B": lambda w: w * torch.tensor(torch.nan)})
    assert len(findings_of(CODE, complex_)) == 1


def test_a_damaged_tensor_beside_the_recurrence_is_named(tmp_path: Path) -> None:
    state = initial_state("mamba2")
    torch.save(state, tmp_path / "m.pt")
    position = list(state).index("model.layers.1.mixer.D")
    content = bytearray((tmp_path / "m.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith(f"/data/{position}"))
    content[member.header_offset : member.header_offset + 4] = b"\0\0\0\0"
    (tmp_path / "m.pt").write_bytes(bytes(content))
    (finding,) = findings_of(CODE, tmp_path / "m.pt")
    assert finding.tensor == "model.layers.1.mixer.D"
    assert finding.message.startswith("D cannot be read: m.pt: tensor model.layers.1.mixer.D cannot be read")


def test_what_stands_outside_the_recurrent_layers_is_not_read(tmp_path: Path) -> None:
    state = initial_state("mamba")
    state["embedding.weight"].fill_(torch.nan)
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))
