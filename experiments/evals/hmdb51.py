"""HMDB51, frozen attentive probe with the settings of Something-Something v2; official split 1.

COMMAND: vjepa eval --config experiments/evals/hmdb51.py:vitl --checkpoint runs/vitl --config.classification.path=FILE
HARDWARE: `vjepa tables --plan T1` tells the device-hours; the heads cost more than the encoder
PUBLISHED NUMBER: none by this protocol; fine-tuned numbers are in vjepa_jax/evals/published.csv and not comparable
MEASURED: not run

Use the official split: clips of one video lie in one group, and a random split would put it on both sides.
FILE is a manifest with the columns path,label,split (train, test). On one GPU of 80 GB the heads pass through memory a
few at a time: heads_at_once and micro_batch change the time and nothing else.
"""

from ml_collections import ConfigDict

VARIANTS = ("vitl", "vith", "vitg", "vitg_384")  # V-JEPA 2


def get_config(arg: str = "vitl") -> ConfigDict:
    config = ConfigDict()
    config.classification = probe = ConfigDict()
    probe.path = "data/hmdb51/manifest.csv"
    probe.name = "hmdb51"
    probe.resolution = 384 if arg.endswith("384") else 256
    probe.frames, probe.frame_step = 16, 4
    probe.segments, probe.views = 2, 3
    probe.epochs, probe.batch_size = 20, 128
    probe.heads_at_once = 1
    probe.micro_batch = 4
    return config
