"""What the runner does at the edges of a run: its end with several processes, and preemption."""

from __future__ import annotations

import fairchem_runs
import pytest

_ROUNDS = 25
_GROUPS_THAT_END = f"""
import faulthandler, tempfile
import escaip_fairchem
import torch, torch.distributed
from escaip_fairchem.plugin.launch import runner

faulthandler.dump_traceback_later(60, exit=True)
for number in range({_ROUNDS}):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{{tempfile.mktemp()}}", rank=0, world_size=1
    )
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    model(torch.randn(2, 3)).sum().backward()
    torch.distributed.all_gather_object([None], {{"a": number}})
    runner.let_collectives_settle()
    torch.distributed.destroy_process_group()
    del model
print("all ended")
"""


@pytest.mark.slow
def test_process_groups_end(tmp_path):
    process = fairchem_runs.run(["-c", _GROUPS_THAT_END], cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "all ended" in process.stdout
