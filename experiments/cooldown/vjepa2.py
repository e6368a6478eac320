"""V-JEPA 2 cooldown: 64 frames at 256 or 384 px while the learning rate falls to nothing (arXiv 2506.09985).

COMMAND: vjepa train --config experiments/cooldown/vjepa2.py:vitg_384 --config.init_from=PRETRAINED --workdir RUN \
   --config.data.path=SSV2,KINETICS,HOWTO100M,YT1B,IMAGENET --config.data.weights="(0.056,0.188,0.318,0.188,0.25)"
   PRETRAINED is a run of experiments/pretrain/vjepa2.py; encoder, target, predictor and Adam's moments go on from it.
HARDWARE: published on 32 nodes of 8 GPUs (L, H) or 64 (g), 12 or 6 clips each
PUBLISHED NUMBER: attentive probe, SSv2 / K400 / IN1K (table 4): L 73.7 / 85.1 / 83.5, H 74.0 / 85.3 / 83.8,
   g 75.3 / 86.6 / 84.6, g at 384 px 77.3 / 87.3 / 85.1
MEASURED: not run
"""

from ml_collections import ConfigDict

ENCODERS = {"vitl": "vit_large", "vith": "vit_huge", "vitg": "vit_giant_xformers"}
VARIANTS = ("vitl_256", "vith_256", "vitg_256", "vitg_384")


def get_config(arg: str = "vitl_256") -> ConfigDict:
    encoder, resolution = arg.split("_")
    config = ConfigDict()
    config.steps = 12_000  # the released file for g at 256 px says 4 epochs of 30 steps, a placeholder
    config.batch_size = 3072
    config.seed = 239
    config.init = ConfigDict({"weights": "all", "optimizer": True})

    config.data = ConfigDict()
    config.data.path = ""
    config.data.num_frames = 64
    config.data.fps = 4.0
    config.data.resolution = int(resolution)
    config.data.random_resize_scale = (0.3, 1.0)
    config.data.random_resize_aspect = (0.75, 1.35)
    config.data.hflip = True
    config.data.num_workers = 12

    config.model = ConfigDict()
    config.model.variant = ENCODERS[encoder]
    config.model.position = "rope_tiled"
    # "dots" is the faster one; with 6 clips of 384 px a GPU it does not fit into 80 GB for ViT-g
    config.model.remat = "full" if resolution == "384" else "dots"
    config.model.predictor = ConfigDict({"embed_dim": 384, "depth": 12, "num_heads": 12, "num_mask_tokens": 2})

    config.masks = ConfigDict()
    config.masks.groups = (
        {"num_blocks": 8, "spatial_scale": (0.15, 0.15), "aspect_ratio": (0.75, 1.5)},
        {"num_blocks": 2, "spatial_scale": (0.7, 0.7), "aspect_ratio": (0.75, 1.5)},
    )
    config.masks.policy = "uniform"  # released: first_k, in truncation groups of 12 (L, H) or 6 (g)

    config.optim = ConfigDict()
    config.optim.start_lr = 5.25e-4
    config.optim.lr = 5.25e-4
    config.optim.warmup_steps = 0
    config.optim.schedule = "linear"
    # the released files plan 15,000 steps (ipe_scale 1.25) and stop after 12,000: theirs ends at 1.06e-4
    config.optim.final_lr = 1e-6
    config.optim.weight_decay = 0.04
    config.ema = ConfigDict({"start": 0.99925, "end": 0.99925})

    config.checkpoint = ConfigDict({"every_steps": 300, "keep_every_steps": 3000})
    config.log = ConfigDict({"every_steps": 10, "health_every_steps": 300, "images_every_steps": 3000})
    return config
