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


_STOPPED_WHILE_STARTING = """
import escaip_fairchem
from fairchem.core.tasks.task import BaseTask
from escaip_fairchem.plugin.launch import main
from escaip_fairchem.plugin.launch.runner import Runner
from fairchem.core.common import distutils

args, overrides = main._parser().parse_known_args(["--config-yml", "config.yml", "--timestamp-id", "run"])
(config,) = main.prepare_configs(args, overrides)
distutils.setup_env_local()
again = []
BaseTask.setup = lambda task, trainer: again.append(runner.checkpoint()) or exit(0)
runner = Runner()
try:
    runner(config)
except SystemExit:
    (config,) = again[0].args
    print("again with", config["timestamp_id"], config["checkpoint"])
"""


@pytest.mark.end_to_end
def test_a_stop_before_the_checkpoint_is_loaded_leaves_the_checkpoint(tmp_path):
    config = {**fairchem_runs.schnet_config(), "trainer": "escaip_forces"}
    config["optim"]["scheduler"] = None
    config["dataset"].pop("test")
    fairchem_runs.prepare(tmp_path, config)
    first = fairchem_runs.run(
        [*fairchem_runs.OURS, "main"], "--config-yml=config.yml", "--timestamp-id=run", cwd=tmp_path
    )
    assert first.returncode == 0, first.stderr
    checkpoint = tmp_path / "checkpoints" / "run" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    stopped = fairchem_runs.run(["-c", _STOPPED_WHILE_STARTING], cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert "again with run None" in stopped.stdout
    assert checkpoint.read_bytes() == before
