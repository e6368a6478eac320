"""Something-Something v2, frozen attentive probe of V-JEPA 2 (arXiv 2506.09985): 2 segments x 3 views, 20 heads.

COMMAND: vjepa eval --config experiments/evals/ssv2.py:vitl --checkpoint runs/vitl --config.classification.path=FILE
HARDWARE: `vjepa tables --plan T1` tells the device-hours; the heads cost more than the encoder
PUBLISHED NUMBER: top-1 ViT-L 73.7, ViT-H 74.0, ViT-g 75.3, ViT-g 384 77.3 (best head on the validation videos)
MEASURED: not run

FILE is a manifest with the columns path,label,split (train, test). On one GPU of 80 GB the heads pass through memory a
few at a time: heads_at_once and micro_batch change the time and nothing else.
"""

from ml_collections import ConfigDict

VARIANTS = ("vitl", "vith", "vitg", "vitg_384")  # V-JEPA 2


def get_config(arg: str = "vitl") -> ConfigDict:
    config = ConfigDict()
    config.classification = probe = ConfigDict()
    probe.path = "data/ssv2/manifest.csv"
    probe.name = "ssv2"
    large = arg.endswith("384")
    probe.resolution = 384 if large else 256
    probe.frames, probe.frame_step = (64, 2) if large else (16, 4)
    probe.segments, probe.views = 2, 3
    probe.epochs, probe.batch_size = 20, 256
    probe.heads_at_once = 1
    probe.micro_batch = 4
    return config
