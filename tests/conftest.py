"""Test set-up: 8 simulated CPU devices, and where data and fixtures are."""

import os
import pathlib

REPO = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Threads of the CPU backend: with one a device, as on a small machine, waiting collectives can occupy them all.
os.environ.setdefault("NPROC", "64")
# Many tests, and the processes they start, compile the same tiny programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPO / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import numpy as np
import pytest


@pytest.fixture
def repo() -> pathlib.Path:
    """The repository's root."""
    return REPO


@pytest.fixture
def shared_data() -> pathlib.Path:
    """Real videos beside the repository; tests that need them skip where they are absent."""
    path = pathlib.Path(os.environ.get("VJEPA_SHARED", REPO.parent / "shared")) / "data"
    if not path.is_dir():
        pytest.skip("no folder of real videos beside the repository (set VJEPA_SHARED to the folder that holds data/)")
    return path


@pytest.fixture
def fixture_npz():
    """Loads tests/fixtures/<name>: numbers from the PyTorch modules."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(REPO / "tests" / "fixtures" / name) as data:
            return {key: data[key] for key in data.files}

    return load


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> pathlib.Path:
    """Manifest of a small world of 16-pixel videos, 8 frames each, with splits pretrain, train and test."""
    from data_pipelines import world
    from data_pipelines.world_spec import WorldSpec

    spec = WorldSpec(size=16, num_frames=8, radius=(2.0, 2.5), speeds=(1.0,))
    folder = tmp_path_factory.mktemp("world")
    return world.write_world(folder, spec, num_videos={"pretrain": 24, "train": 32, "test": 16}, workers=0)


@pytest.fixture
def tiny_config(tiny_world):
    """A config dict of the smallest model that has every part; keyword arguments replace whole keys or groups."""

    def make(**changes):
        config = {
            "steps": 6,
            "batch_size": 8,
            "data": {
                "path": str(tiny_world),
                "split": "pretrain",
                "num_frames": 4,
                "frame_step": 1,
                "resolution": 16,
                "num_threads": 1,
            },
            "model": {
                "variant": "vit_micro",
                "embed_dim": 16,
                "depth": 2,
                "num_heads": 2,
                "patch_size": 4,
                "dtype": "float32",
                "predictor": {"embed_dim": 16, "depth": 1, "num_heads": 2},
            },
            "masks": {"groups": [{"num_blocks": 2, "spatial_scale": [0.3, 0.3], "context": 8, "target": 8}]},
            "optim": {"lr": 1e-3, "start_lr": 1e-3},
            "log": {"every_steps": 1, "health_every_steps": 100, "images_every_steps": 0, "report": False},
        }
        for key, value in changes.items():
            config[key] = config[key] | value if isinstance(config.get(key), dict) else value
        return config

    return make
