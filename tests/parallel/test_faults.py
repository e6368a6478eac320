"""Two processes and their checkpoints: damaged ones, a full disk, death in the middle of a save."""

import os
import re
import shutil
import signal

from vjepa_jax.training.checkpoint import Checkpoints

from ..processes import assert_same, finish, kill, start, train, wait_until

PROCESSES, DEVICES = 2, 4

# The operating system refuses what process INDEX writes in the saves of the steps FULL[INDEX], as a full disk does; all
# other writes go through. A process that waits in vain for the other's part gives up after 10 seconds, not 20 minutes.
FULL_DISK = """
import functools, resource
from orbax.checkpoint import v1 as ocp
from vjepa_jax.training.checkpoint import Checkpoints

FULL = ((4,), (4, 12))
context = ocp.Context()
context.asynchronous.timeout_secs = 10
ocp.training.Checkpointer = functools.partial(ocp.training.Checkpointer, context=context)
save, wait, (soft, hard), last = Checkpoints.save, Checkpoints.wait, resource.getrlimit(resource.RLIMIT_FSIZE), []

def limited(self, step, state):
    assert wait(self) is None
    full = step in FULL[int(sys.argv[3].split(",")[1])]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if full else soft, hard))
    problem = save(self, step, state) or wait(self)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if step < 12:
        return problem
    last.append(problem)  # the loop hears of it when it waits for the last save

Checkpoints.save, Checkpoints.wait = limited, lambda self: last.pop() if last else wait(self)
"""


def names(workdir):
    folder = workdir / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def cut(checkpoint, what):
    """Halves the files of array contents under `what` in a checkpoint's folder."""
    files = [path for path in checkpoint.glob(f"state/{what}/d/*") if path.stat().st_size > 1000]
    assert files
    for path in files:
        os.truncate(path, path.stat().st_size // 2)


def test_both_go_on_from_the_newest_checkpoint_that_loads_on_both(alone, config, tmp_path):
    """Of one checkpoint both miss something, of the one before it process 1 alone misses what it once wrote."""
    workdir = tmp_path / "run"
    train(config, workdir, PROCESSES, devices=DEVICES)
    assert Checkpoints(workdir).steps == [4, 8, 12]
    cut(workdir / "checkpoints" / "12", ".")
    cut(workdir / "checkpoints" / "8", "ocdbt.process_1")
    outputs = train(config, workdir, PROCESSES, devices=DEVICES)
    for output in outputs:
        for step in (12, 8):
            assert f"checkpoints/{step} does not load (" in output
        assert output.count("trying the one before it") == 2
    assert "going on from step 4" in outputs[0]
    assert_same(workdir, alone)
    assert "going on from step 12" in train(config, workdir, PROCESSES, devices=DEVICES)[0]  # saved anew


def test_a_full_disk_while_saving_loses_nothing(alone, config, tmp_path):
    """First of both processes, and training goes on; in the last save of one alone, for which the other waits."""
    workdir = tmp_path / "run"
    outputs = finish(start(config, workdir, PROCESSES, devices=DEVICES, fault=FULL_DISK), 1)
    assert "checkpoint of step 4 could not be saved (" in outputs[0]
    assert "there is no older checkpoint. Free space in" in outputs[0]
    reason = r"\(TimeoutError: .* and OSError: .*File too large\)"  # process 1 has the cause, and process 0 tells it
    whole = "the checkpoint of step 8 is whole. Free space in"
    assert re.search(f"checkpoint of step 12 could not be saved {reason}; {whole}", outputs[0])
    assert_same(workdir, alone)
    outputs = train(config, workdir, PROCESSES, devices=DEVICES)
    assert "going on from step 8" in outputs[0]
    assert_same(workdir, alone)


def test_killed_in_the_middle_of_a_save_both_go_on_from_the_one_before(alone, config, tmp_path):
    workdir = tmp_path / "run"
    processes = start(config, workdir, PROCESSES, devices=DEVICES)
    wait_until(lambda: any(name.startswith("8.") for name in names(workdir)), processes)
    kill(processes)
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * PROCESSES
    left = names(workdir)
    assert "4" in left and "8" not in left and any(name.startswith("8.") for name in left)
    outputs = train(config, workdir, PROCESSES, devices=DEVICES)
    assert "going on from step 4" in outputs[0]
    assert Checkpoints(workdir).steps == [4, 8, 12]
    assert_same(workdir, alone)


def test_processes_that_see_different_checkpoints_say_so(alone, reference, config, tmp_path):
    """As with a --workdir on a disk of each machine's own."""
    shutil.copytree(reference / "alone", tmp_path / "run")
    unseen = "from vjepa_jax.training.checkpoint import Checkpoints\n"
    unseen += "if sys.argv[3].split(',')[1] == '1': Checkpoints.steps = []"
    for output in finish(start(config, tmp_path / "run", PROCESSES, fault=unseen), 2):
        assert re.search(r"process 1 on \S+ has checkpoints of steps none, process 0 on \S+ has 4, 8, 12: ", output)
