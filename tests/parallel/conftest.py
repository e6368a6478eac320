"""A tiny run, and its losses on one device of one process, to which those of several processes are compared."""

import pytest

from ..processes import losses, train


@pytest.fixture
def config(tiny_config):
    return tiny_config(steps=12, checkpoint={"every_steps": 4, "keep_last": 3}, mesh={"fsdp": -1}, seed=3)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tmp_path_factory.mktemp("reference")


@pytest.fixture
def alone(reference, config):
    """Losses of one process with one device, started once."""
    if not (reference / "alone").is_dir():
        train(config, reference / "alone")
    return losses(reference / "alone")
