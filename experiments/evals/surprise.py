"""Violation of expectation on IntPhys, GRASP or InfLevel (arXiv 2502.11831), or on the embedded world.

COMMAND: vjepa eval --config experiments/evals/surprise.py:intphys --checkpoint RUN --config.surprise.path=INTPHYS
HARDWARE: one GPU; 2 CPU cores for :world
PUBLISHED NUMBER: relative accuracy at the best context, V-JEPA ViT-H: IntPhys 98, GRASP 66, InfLevel 62
MEASURED: not on these sets; on the world: experiments/evals/world_suite.py
"""

from ml_collections import ConfigDict

VARIANTS = ("intphys", "grasp", "inflevel", "world")
FRAME_STEP = {"intphys": 2, "grasp": 10, "inflevel": 5, "world": 1}


def get_config(layout: str = "intphys") -> ConfigDict:
    group = ConfigDict({"layout": layout, "frame_step": FRAME_STEP[layout]})
    if layout == "inflevel":  # of clips of 32 frames
        group.contexts, group.fixed_context = (4, 8, 12, 16, 20), 12
    return ConfigDict({"surprise": group})
