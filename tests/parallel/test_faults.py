"""Two processes and their damaged checkpoints."""

import os

from vjepa_jax.training.checkpoint import Checkpoints

from ..processes import assert_same, train

PROCESSES, DEVICES = 2, 4


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
