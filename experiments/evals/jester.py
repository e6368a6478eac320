"""Jester, frozen attentive probe of V-JEPA 2 (arXiv 2506.09985) on four blocks: 4 segments x 3 views, 3 heads.

COMMAND: vjepa eval --config experiments/evals/jester.py:vitl --checkpoint runs/vitl --config.classification.path=FILE
HARDWARE: `vjepa tables --plan T1` tells the device-hours; the heads cost more than the encoder
PUBLISHED NUMBER: top-1 ViT-L 97.6, ViT-H 97.7, ViT-g 97.7, ViT-g 384 97.8 (best head on the validation videos)
MEASURED: not run

FILE is a manifest with the columns path,label,split (train, test). On one GPU of 80 GB the heads pass through memory a
few at a time: heads_at_once and micro_batch change the time and nothing else.
"""

from ml_collections import ConfigDict

LAYERS = {"vitl": (17, 19, 21, 23), "vith": (25, 27, 29, 31), "vitg": (24, 29, 34, 39), "vitg_384": (24, 29, 34, 39)}
VARIANTS = tuple(LAYERS)  # V-JEPA 2


def get_config(arg: str = "vitl") -> ConfigDict:
    config = ConfigDict()
    config.classification = probe = ConfigDict()
    probe.path = "data/jester/manifest.csv"
    probe.name = "jester"
    probe.resolution = 384 if arg.endswith("384") else 256
    probe.frames, probe.frame_step = 32, 2
    probe.segments, probe.views = 4, 3
    probe.layers = LAYERS[arg]
    probe.epochs, probe.batch_size = 100, 128  # V-JEPA 2.1: 50 epochs
    probe.lrs, probe.weight_decays = (1e-3, 3e-4, 1e-4), (0.8,)
    probe.heads_at_once = 1
    probe.micro_batch = 4
    return config
