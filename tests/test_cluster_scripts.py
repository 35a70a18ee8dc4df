"""The SLURM scripts of the guide: they are bash, and start the right commands in the right processes.

Each script runs with stand-ins for `srun`, `scontrol`, `accelerate` and `facesyn`, whose calls are compared.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import command_lines
import pytest

import facesyn_cli

GUIDE = Path(facesyn_cli.__file__).parent / "guide" / "cluster.md"
BASH = shutil.which("bash")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
SCRIPTS = {match[1]: block for block in BLOCKS if (match := re.search(r"--job-name=(\S+)", block))}
STAND_INS = {
    "srun": """while [[ $1 == --* ]]; do shift; done
code=0
for ((i = 0; i < SLURM_NTASKS; i++)); do
    export SLURM_PROCID=$i SLURM_NODEID=$((i / TASKS_PER_NODE)) SLURM_LOCALID=$((i % TASKS_PER_NODE))
    "$@" || code=$?
done
exit "$code"
""",
    "scontrol": """if [ "$1" = show ]; then seq -f node%g "$SLURM_NNODES"; else echo "scontrol $*" >> "$CALLS"; fi
""",
    "accelerate": """echo "accelerate $*" >> "$CALLS"; exit "$CODE"
""",
    "facesyn": """echo "$RANK,$LOCAL_RANK,$WORLD_SIZE,$MASTER_ADDR,$MASTER_PORT: facesyn $*" >> "$CALLS"; exit "$CODE"
""",
}

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")


@pytest.mark.parametrize("script", BLOCKS)
def test_every_block_is_bash(script: str) -> None:
    ran = subprocess.run([BASH, "-n"], input=script, text=True, capture_output=True)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_commands_of_the_scripts_exist(name: str) -> None:
    started = re.findall(r"(?:facesyn|facesyn_cli) (\S+ .*?)'?$", SCRIPTS[name], re.MULTILINE)
    assert started
    for words in command_lines.in_lines(f"facesyn {line}" for line in started):
        command_lines.check(words)


@pytest.mark.parametrize(("task", "code", "is_requeued"), [(1, 0, False), (16, 143, True), (3, 2, False)])
def test_an_array_job_makes_one_part_and_is_requeued_after_a_stop(
    task: int, code: int, is_requeued: bool, tmp_path: Path
) -> None:
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", SCRIPTS["sample"]).groups())
    returned, calls = run("sample", tmp_path, code, SLURM_ARRAY_TASK_ID=str(task))
    assert first == 1 and returned == code
    assert [line for line in calls if "facesyn" in line] == [
        f",,,,: facesyn sample --work runs/a --ids 10000 --per-id 50 --shard {task}/{last}"
    ]
    assert ("scontrol requeue 77" in calls) is is_requeued


@pytest.mark.parametrize(
    ("code", "restarts", "is_finished", "is_requeued"),
    [(0, 0, True, False), (1, 0, False, True), (1, 10, False, False), (1, 0, True, False)],
)
@pytest.mark.parametrize(("name", "folder", "nodes"), [("train-one-node", "7-fr", 1), ("train-many-nodes", "2-ldm", 4)])
def test_launchers_on_nodes_find_each_other_and_restart_until_the_header_is_there(
    name: str, folder: str, nodes: int, code: int, restarts: int, is_finished: bool, is_requeued: bool, tmp_path: Path
) -> None:
    if is_finished:
        (tmp_path / "runs" / "a" / folder).mkdir(parents=True)
        (tmp_path / "runs" / "a" / folder / "facesyn.json").touch()
    returned, calls = run(name, tmp_path, code, SLURM_RESTART_COUNT=str(restarts))
    started = [line for line in calls if line.startswith("accelerate")]
    assert returned == code and len(started) == nodes
    for number, line in enumerate(started):
        assert f"--num_machines {nodes} --num_processes {8 * nodes} " in line
        if nodes > 1:
            assert f"--machine_rank {number} --main_process_ip node1 --main_process_port 20077 " in line
    assert ("scontrol requeue 77" in calls) is is_requeued


@pytest.mark.parametrize(("code", "is_requeued"), [(0, False), (138, True), (143, True), (2, False)])
def test_processes_started_by_srun_have_their_ranks(code: int, is_requeued: bool, tmp_path: Path) -> None:
    returned, calls = run("train-by-srun", tmp_path, code)
    ranks = [line.partition(":")[0] for line in calls if "facesyn" in line]
    assert returned == code
    assert ranks == [f"{i},{i % 8},32,node1,20077" for i in range(32)]
    assert ("scontrol requeue 77" in calls) is is_requeued


def run(name: str, folder: Path, code: int, **environment: str) -> tuple[int, list[str]]:
    """Run a script with the stand-ins; return its exit code and the calls they received.

    Args:
        name: Of the job.
        folder: Empty folder to run in.
        code: Exit code of every process.
        environment: Variables that SLURM sets.
    """
    script, stand_ins = SCRIPTS[name], folder / "bin"
    stand_ins.mkdir()
    for command, text in STAND_INS.items():
        (stand_ins / command).write_text(f"#!{BASH}\n{text}")
        (stand_ins / command).chmod(0o755)
    nodes, tasks = (int(found[1]) if (found := re.search(rf"--{option}=(\d+)", script)) else 1
                    for option in ("nodes", "ntasks-per-node"))
    ran = subprocess.run(
        [BASH, "-c", script], cwd=folder, capture_output=True, text=True,
        env={
            "PATH": f"{stand_ins}{os.pathsep}{os.environ['PATH']}", "CALLS": str(folder / "calls"), "CODE": str(code),
            "SLURM_JOB_ID": "77", "SLURM_NNODES": str(nodes), "SLURM_NTASKS": str(nodes * tasks),
            "TASKS_PER_NODE": str(tasks), "SLURM_JOB_NODELIST": f"node[1-{nodes}]", **environment,
        },
    )
    assert not ran.stderr, ran.stderr
    return ran.returncode, (folder / "calls").read_text().splitlines()
