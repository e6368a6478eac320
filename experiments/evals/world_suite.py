"""World understanding on the embedded world, whose ground truth is exact: every protocol that needs no data.

COMMAND: vjepa eval --config experiments/evals/world_suite.py --checkpoint runs/demo
HARDWARE: 2 CPU cores
PUBLISHED NUMBER: none, the world is ours
MEASURED: not yet

The settings are those of small clips (experiments/demo.py: 8 frames of 32 pixels). For a run on other clips override
them, say --config.surprise.contexts="(2,4,6,8,10)"; the defaults of a protocol are the published ones.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.surprise = ConfigDict({"contexts": (2, 4, 6), "fixed_context": 4, "frame_step": 1, "pairs": 96})
    config.motion = ConfigDict({"horizons": (1, 2), "videos": 256})
    config.consistency = ConfigDict({"deltas": (1, 3, 6), "videos": 128})
    config.context = ConfigDict({"frames": (8, 16, 32), "train": 192, "test": 192, "seeds": 1})
    config.transfer = ConfigDict({"train": 1000, "test": 500})
    return config
