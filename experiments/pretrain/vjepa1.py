"""V-JEPA 1 pre-training: 16 frames, every fourth, at 224 or 384 px (arXiv 2404.08471).

COMMAND: vjepa train --config experiments/pretrain/vjepa1.py:vitl --workdir RUN \
   --config.data.path=K710,SSV2,HOWTO100M
HARDWARE: published on 16 nodes of 8 GPUs, 24 clips each (vith_384: 30 nodes, 10 clips)
PUBLISHED NUMBER: one-block attentive probe, K400 / SSv2 / IN1K: L 80.8 / 69.5 / 74.8, H 82.0 / 71.4 / 75.9,
   H at 384 px 81.9 / 72.2 / 77.4 (the repository's table)
MEASURED: not run
"""

from ml_collections import ConfigDict

VARIANTS = ("vitl", "vith", "vith_384")


def get_config(arg: str = "vitl") -> ConfigDict:
    large = arg == "vith_384"
    config = ConfigDict()
    config.steps = 90_000
    config.batch_size = 2400 if large else 3072
    config.seed = 234

    config.data = ConfigDict()
    config.data.path = ""
    config.data.num_frames = 16
    config.data.frame_step = 4
    config.data.resolution = 384 if large else 224
    config.data.random_resize_scale = (0.3, 1.0)
    config.data.random_resize_aspect = (0.75, 1.35)
    config.data.hflip = True
    config.data.num_workers = 12

    config.model = ConfigDict()
    config.model.variant = "vit_large" if arg == "vitl" else "vit_huge"
    config.model.position = "sincos"
    # as many heads as the encoder has; the head size of 24 is the released code's
    config.model.predictor = ConfigDict({"embed_dim": 384, "depth": 12, "num_heads": 16, "num_mask_tokens": 2})

    config.masks = ConfigDict()
    config.masks.groups = (
        {"num_blocks": 8, "spatial_scale": (0.15, 0.15), "aspect_ratio": (0.75, 1.5)},
        {"num_blocks": 2, "spatial_scale": (0.7, 0.7), "aspect_ratio": (0.75, 1.5)},
    )
    config.masks.policy = "uniform"  # released: first_k, in truncation groups of 24 (vith_384: 10)

    config.optim = ConfigDict()
    config.optim.horizon = 1.25  # the three schedules are cut off after four fifths (ipe_scale)
    config.optim.start_lr = 2e-4
    config.optim.lr = 6.25e-4
    config.optim.final_lr = 1e-6
    config.optim.warmup_steps = 12_000
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 0.04
    config.optim.final_weight_decay = 0.4
    config.optim.clip_norm = 10.0  # released: encoder and predictor each on their own, and only after the warm-up
    config.ema = ConfigDict({"start": 0.998, "end": 1.0})

    config.checkpoint = ConfigDict({"every_steps": 1500, "keep_every_steps": 15_000})
    config.log = ConfigDict({"every_steps": 10, "health_every_steps": 300, "images_every_steps": 15_000})
    return config
