"""The training loop in three processes, with many small sums of gradients: resumes are exact, errors common to all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.training.metrics_log import read_lines

pytestmark = pytest.mark.dist

WORKER = """
import json, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from toy_task import ToyTask
from facesyn_cli import signals
from facesyn_cli.distributed import processes
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.training import gradient_sums, trainer
gradient_sums._BUCKET, group, found = 10, processes("cpu"), {}

class Shared(ToyTask):
    def step(self, batch, step, lr, scaler):
        rank, size = group.rank, len(batch) // group.world_size
        if step in self.after:
            self.after[step]()
        own = batch[rank * size : (rank + 1) * size]
        loss = (self.network(own) - own.sum(1, keepdim=True)).square().sum() / len(batch)
        with self.gradients.last_pass():
            loss.backward()
        is_broken = step == self.broken_batch and rank == 1  # in one process alone
        return {"loss": loss.detach() * (float("nan") if is_broken else 1)}

    def finish(self, network):
        return super().finish(network) if group.is_first else ({}, {})

def train(name, broken=None):
    task = Shared(Path(sys.argv[2]) / name, batch_size=12, steps=9, log_every=4, checkpoint_every=100, ema={})
    task.broken_batch = broken
    return task

task = train("whole")
trainer.run_training(task, group)
found["sums"] = len(task.gradients.buckets)
task = train("stopped")
task.after = {4: lambda: signals._remember(signal.SIGTERM, None) if group.rank == 2 else None}
try:
    trainer.run_training(task, group)
except Stopped as error:
    found["stopped"] = len(list(task.folder.glob("checkpoints/step-00000005")))
signals.reset()
trainer.run_training(train("stopped"), group)
for most_pending in (1, 100):
    task = train(f"broken-{most_pending}", 1)
    task.folder.mkdir(exist_ok=True)
    try:
        late = trainer.Trainer(task, group)
        late.most_pending = most_pending
        late.run()
    except UserError as error:
        found[f"broken-{most_pending}"] = str(error).split(":")[0]
Path(sys.argv[2], f"{group.rank}.json").write_text(json.dumps(found))
"""


def test_three_processes_resume_exactly_and_end_together(tmp_path: Path) -> None:
    script, tests = tmp_path / "worker.py", Path(__file__).parent.parent
    script.write_text(WORKER)
    code = ("from facesyn_cli.launch import run_workers; "
            f"print(run_workers([{str(tests)!r}, {str(tmp_path)!r}], 3, [{str(script)!r}]))")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment)
    assert ran.stdout.splitlines()[-1:] == ["0"], ran.stderr
    for rank in range(3):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        stopped = "training stopped in step 2 of 9"
        assert found == {"sums": 5, "stopped": 1, "broken-1": stopped, "broken-100": stopped}
    whole, stopped = (read_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all((whole[name] == stopped[name]).all() for name in whole)
    lines = [
        [{key: line[key] for key in ("step", "loss", "grad_norm", "val_loss") if key in line}
         for line in read_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "stopped")
    ]
    assert lines[0] == lines[1] and len(lines[0]) >= 5
