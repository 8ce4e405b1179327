"""Write docs/slurm_transcript.md: a sweep of six runs on a cluster of this machine, two displaced and one killed.

python tests/slurm/transcript.py docs/slurm_transcript.md
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "plugin")]

from cluster import Cluster  # noqa: E402
from slurm_cases import environment, rank_process  # noqa: E402

HEAD = """# A sweep of six runs, as it went

On a SLURM of one node with two processors, with the demonstration's data and model: three rates, two widths, two runs
at a time. On the way, two runs are displaced by a job of another partition, and the process of a third is killed. This
page was written by `python tests/slurm/transcript.py`; paths are shortened.
"""
SWEEP = """name: demo
config: {config}
set:
  optim: {{max_epochs: 3, eval_every: 30, checkpoint_every: 20}}
grid:
  optim.lr_initial: [0.001, 0.003, 0.01]
  model.backbone.hidden_size: [32, 64]
"""
SITE = """slurm:
  partition: cpu
  mem: 2G
  time: "00:30:00"
  cpus_per_task: 1
  concurrent_jobs: 2
"""
MAIN = "fairchem main --sweep-yml demo.sweep.yml --slurm-yml my.site.yml --cpu"
MODULES = {"fairchem": "escaip_fairchem.cli.fairchem", "escaip": "escaip_fairchem.cli.main"}


class Transcript:
    """Runs commands as in a terminal, and notes them with what they print."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.text = [HEAD]

    def say(self, text: str) -> None:
        self.text.append(f"\n{text}\n")

    def show(self, name: str) -> None:
        """Print a file."""
        self._note(f"cat {name}", (self.folder / name).read_text())

    def run(self, line: str, keep: str = "") -> str:
        """Run a command, and note the lines of its output that match."""
        program, *words = shlex.split(line)
        command = (
            [sys.executable, "-W", "ignore", "-m", MODULES[program], *words]
            if program in MODULES
            else [program, *words]
        )
        found = subprocess.run(
            command, cwd=self.folder, env=environment(self.cluster), capture_output=True, text=True, check=False
        )
        said = found.stdout + found.stderr
        if found.returncode != 0:
            raise SystemExit(f"{line}: status {found.returncode}\n{said}")
        lines = [one for one in said.splitlines() if re.search(keep, one)]
        self._note(line, "\n".join(lines).strip() + "\n")
        return said

    def _note(self, line: str, output: str) -> None:
        output = re.sub(r"^\S+ \S+ \S+ \((?:INFO|WARNING)\): ", "", output, flags=re.MULTILINE)  # where it was logged
        shown = output.replace(f"{self.folder}/", "").replace(str(self.folder), ".")
        self.text.append(f"\n```console\n$ {line}\n{shown}```\n")

    def state(self, run: str) -> str:
        status = self.folder / "checkpoints" / run / "status.json"
        found = re.search(r'"step": (\d+)', status.read_text()) if status.is_file() else None
        return found[1] if found else "0"

    def wait_for_step(self, run: str, step: int) -> None:
        self.cluster.wait_for(lambda: int(self.state(run)) >= step, f"step {step} of {run}", 240)

    def job(self, run: str) -> str:
        found = re.search(r'"job": "(\S+)"', (self.folder / "checkpoints" / run / "submission.json").read_text())
        assert found
        return found[1]

    def squeue(self, job: str) -> str:
        words = ["squeue", "--noheader", "--array", "--states=all", "--format=%T", "--jobs", job]
        return self.cluster.run(words, check=False).stdout.strip()


def write(path: Path, cluster: Cluster, folder: Path) -> None:
    """Run everything."""
    it = Transcript(folder, cluster)
    config = Path(__file__).parents[2] / "configs/demo/escaip_demo.yml"
    shutil.copy(config, folder / "escaip_demo.yml")
    (folder / "demo.sweep.yml").write_text(SWEEP.format(config="escaip_demo.yml"))
    (folder / "my.site.yml").write_text(SITE)
    it.run("escaip data demo data/demo --n-train 240 --n-val 24 --n-test 24", keep="^$")
    it.show("demo.sweep.yml")
    it.show("my.site.yml")
    it.say("What would be submitted:")
    it.run(f"{MAIN} --dry-run", keep=r"^(?!.*(INFO|WARNING|Overwritten))")
    it.say("Submitted:")
    it.run(f"{MAIN} --submit", keep="submitted as")
    first, second = "demo-lr_initial=0.001-hidden_size=32", "demo-lr_initial=0.001-hidden_size=64"
    it.wait_for_step(second, 20)
    it.run("escaip runs")
    it.say("A job of a partition that goes first wants the whole node. Both runs save, and are queued again:")
    it.run("sbatch --partition=urgent --exclusive --output=/dev/null --wrap 'sleep 10'")
    cluster.wait_for(lambda: it.squeue(it.job(second)) == "PENDING", "the second run to wait", 60)
    it.run("escaip runs")
    cluster.wait_for(
        lambda: "PENDING" in it.squeue(it.job(first)) or "COMPLETED" in it.squeue(it.job(first)), "both", 60
    )
    it.say("SLURM has them wait for two minutes. Meanwhile others start, one of which is killed:")
    third = "demo-lr_initial=0.003-hidden_size=32"
    it.wait_for_step(third, 25)
    victim = rank_process(cluster, it.job(third), 0)
    os.kill(victim, signal.SIGKILL)
    it.text.append("\n```console\n$ kill -9 PID\n```\n")
    cluster.wait_for(lambda: it.squeue(it.job(third)) == "FAILED", "the third run to fail", 60)
    it.run("escaip runs")
    it.run("escaip resubmit")
    it.say("In the end, sorted by the error of forces:")
    names = [path.name for path in (folder / "checkpoints").iterdir()]

    def finished() -> bool:
        for name in names:
            if it.squeue(it.job(name)) == "PENDING":
                cluster.run(["scontrol", "update", f"JobId={it.job(name)}", "StartTime=now"], check=False)
        return all(it.squeue(it.job(name)) == "COMPLETED" for name in names)

    cluster.wait_for(finished, "all runs", 900)
    it.run("escaip runs --best forces_mae")
    path.write_text("".join(it.text), encoding="utf-8")


def main() -> None:
    """Start a cluster, run everything, end the cluster."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as home, tempfile.TemporaryDirectory() as work:
        cluster = Cluster(Path(home))
        cluster.start()
        try:
            write(Path(sys.argv[1]).resolve(), cluster, Path(work))
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
