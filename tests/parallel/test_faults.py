"""Two processes and their checkpoints: damaged ones, death in the middle of a save."""

import os
import signal

from vjepa_jax.training.checkpoint import Checkpoints

from ..processes import assert_same, kill, start, train, wait_until

PROCESSES, DEVICES = 2, 4


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
