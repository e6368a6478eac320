"""World understanding on the embedded world, whose ground truth is exact: every protocol that needs no data.

COMMAND: vjepa eval --config experiments/evals/world_suite.py --checkpoint runs/demo
HARDWARE: 2 CPU cores, 4 minutes where nothing else runs (6 where much does)
PUBLISHED NUMBER: none, the world is ours
MEASURED: on a demo run (400 steps, checkpoint of step 400, the 2 cores shared): 3 min 48 s. Its predictor fills in what
   is masked, and from the past alone it predicts little more than the mean (skill against it .05), so that it is at
   chance where violations are concerned: 47.9 % (38.5 to 57.3) of 96 pairs, random init 49.0 %.

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
