"""COIN, frozen attentive probe of V-JEPA 2 (arXiv 2506.09985): 8 segments x 3 views, 20 heads.

COMMAND: vjepa eval --config experiments/evals/coin.py:vitl --checkpoint runs/vitl --config.classification.path=FILE
HARDWARE: `vjepa tables --plan T1` tells the device-hours; the heads cost more than the encoder
PUBLISHED NUMBER: top-1 ViT-L 86.8, ViT-H 87.9, ViT-g 90.7, ViT-g 384 91.1 (best head on the validation videos)
MEASURED: not run

FILE is a manifest with the columns path,label,split (train, test). On one GPU of 80 GB the heads pass through memory a
few at a time: heads_at_once and micro_batch change the time and nothing else.
"""

from ml_collections import ConfigDict

VARIANTS = ("vitl", "vith", "vitg", "vitg_384")  # V-JEPA 2


def get_config(arg: str = "vitl") -> ConfigDict:
    config = ConfigDict()
    config.classification = probe = ConfigDict()
    probe.path = "data/coin/manifest.csv"
    probe.name = "coin"
    probe.resolution = 384 if arg.endswith("384") else 256
    probe.frames, probe.frame_step = 16, 4  # the released file; the paper says 32 frames
    probe.segments, probe.views = 8, 3
    probe.epochs, probe.batch_size = 20, 128
    probe.heads_at_once = 1
    probe.micro_batch = 4
    return config
