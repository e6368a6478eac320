"""ImageNet-1K, frozen attentive probe of V-JEPA 2 (arXiv 2506.09985): an image repeated 16 times, 21 heads.

COMMAND: vjepa eval --config experiments/evals/imagenet.py:vitl --checkpoint runs/vitl --config.classification.path=FILE
HARDWARE: `vjepa tables --plan T1` tells the device-hours; the heads cost more than the encoder
PUBLISHED NUMBER: top-1 ViT-L 83.5, ViT-H 83.8, ViT-g 84.6, ViT-g 384 85.1 (best head on the validation
   images; the paper reads ViT-g 384 at 512 px)
MEASURED: not run

FILE is a manifest with the columns path,label,split (train, test). On one GPU of 80 GB the heads pass through memory a
few at a time: heads_at_once and micro_batch change the time and nothing else.
"""

from ml_collections import ConfigDict

VARIANTS = ("vitl", "vith", "vitg", "vitg_384")  # V-JEPA 2


def get_config(arg: str = "vitl") -> ConfigDict:
    config = ConfigDict()
    config.classification = probe = ConfigDict()
    probe.path = "data/imagenet/manifest.csv"
    probe.name = "imagenet"
    probe.resolution = 384 if arg.endswith("384") else 256
    probe.frames, probe.frame_step = (18, 1) if arg.endswith("384") else (16, 1)  # of the one frame that there is
    probe.segments, probe.views = 1, 1
    probe.epochs, probe.batch_size = 20, 1024
    probe.lrs, probe.weight_decays = (5e-4, 1e-3, 1.5e-3, 2e-3), (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    probe.start_lr, probe.warmup_epochs = 2e-4, 5.0
    probe.extra_heads = ((1e-3, 1e-3, 0.0),)
    probe.controls = ()  # of one frame
    probe.heads_at_once = 1
    probe.micro_batch = 64
    return config
