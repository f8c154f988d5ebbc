"""torch's own wrappers around a live model: compiled, under DDP, sharded by FSDP2; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PLAIN = """
import torch, torch.distributed as dist
from tests.watching.test_watch import mamba, read
plain = read(mamba())
assert read(torch.compile(mamba())) == plain
with torch.autocast("cpu", dtype=torch.bfloat16):
    assert read(mamba()) == plain
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
assert read(torch.nn.parallel.DistributedDataParallel(mamba())) == plain
assert read(torch.nn.parallel.DistributedDataParallel(torch.compile(mamba()))) == plain
"""
SHARDED = """
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from ssmdiag.errors import SsmdiagError
from tests.watching.test_watch import mamba, read
dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
mesh, model = init_device_mesh("cpu", (2,)), mamba()
fully_shard(model, mesh=mesh)
try:
    read(model)
except SsmdiagError as error:
    assert "layers.0.mixer.A_log is a DTensor over 2 ranks" in str(error), error
else:
    raise AssertionError("half of the weights were read")
model = mamba()
whole = {weight for name, weight in model.named_parameters() if "A_log" in name or name.endswith("bias")}
fully_shard(model, mesh=mesh, ignored_params=whole)
assert read(model) == read(mamba())
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [PLAIN, SHARDED], ids=["whole", "sharded"])
def test_a_wrapped_model_is_read_or_refused(code: str) -> None:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
