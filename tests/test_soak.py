"""A run killed again and again, while it starts, trains and saves, gives the losses of one that never was."""

import os
import random
import time

import pytest

from .processes import kill, losses, start, train, wait_for_step, wait_until

KILLS = int(os.environ.get("VJEPA_SOAK_KILLS", "6"))  # of each kind about a third


@pytest.fixture
def config(tiny_config):
    return tiny_config(steps=20 * KILLS, checkpoint={"every_steps": 5}, seed=3)


def saves_after(workdir, step):
    """Whether a checkpoint of a later step is being written: orbax names its folder STEP.orbax-checkpoint-tmp."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(int(name.partition(".")[0]) > step for name in names if "tmp" in name)


def test_killed_at_random_moments_and_started_again_the_losses_are_the_same(config, tmp_path):
    workdir, chance, progress = tmp_path / "killed", random.Random(7), []
    moments = ["start-up", "training", "saving"] * (KILLS // 3 + 1)
    for moment in chance.sample(moments[:KILLS], KILLS):
        before = max(losses(workdir), default=0)
        processes = start(config, workdir)
        if moment == "start-up":
            time.sleep(chance.uniform(0.2, 4))
        elif moment == "training":
            wait_for_step(workdir, before + chance.randint(1, 9), processes)
            time.sleep(chance.uniform(0, 0.05))
        else:
            wait_until(lambda before=before: saves_after(workdir, before), processes)
            time.sleep(chance.uniform(0, 0.1))
        kill(processes)
        assert processes[0].returncode == -9
        progress.append(max(losses(workdir), default=0) - before)
    assert sum(gain > 0 for gain in progress) >= KILLS // 2, progress
    (output,) = train(config, workdir)
    assert "going on from step" in output
    train(config, tmp_path / "whole")
    assert len(losses(workdir)) == config["steps"]
    assert losses(workdir) == losses(tmp_path / "whole")  # bitwise
