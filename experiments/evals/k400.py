"""Kinetics-400, frozen attentive probe of V-JEPA 2 (arXiv 2506.09985): 16 frames x 8 segments x 3 views, 20 heads.

COMMAND: vjepa eval --config experiments/evals/k400.py:vitl --checkpoint runs/vitl --config.classification.path=FILE
HARDWARE: `vjepa tables --plan T1` tells the device-hours; the heads cost more than the encoder
PUBLISHED NUMBER: top-1 ViT-L 85.1, ViT-H 85.3, ViT-g 86.6, ViT-g 384 87.3 (best head on the validation videos)
MEASURED: not run

FILE is a manifest with the columns path,label,split (train, test). On one GPU of 80 GB the heads pass through memory a
few at a time: heads_at_once and micro_batch change the time and nothing else.
"""

from ml_collections import ConfigDict

VARIANTS = ("vitl", "vith", "vitg", "vitg_384")  # V-JEPA 2


def get_config(arg: str = "vitl") -> ConfigDict:
    config = ConfigDict()
    config.classification = probe = ConfigDict()
    probe.path = "data/k400/manifest.csv"
    probe.name = "k400"
    probe.resolution = 384 if arg.endswith("384") else 256
    probe.frames, probe.frame_step = 16, 4
    probe.segments, probe.views = 8, 3
    probe.epochs, probe.batch_size = 20, 256
    probe.heads_at_once = 1
    probe.micro_batch = 4
    return config
