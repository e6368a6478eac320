"""V-JEPA 2 pre-training on 16 frames of 256 px at a constant learning rate (arXiv 2506.09985, the primary recipe).

COMMAND: vjepa train --config experiments/pretrain/vjepa2.py:vitg --workdir RUN \
   --config.data.path=SSV2,KINETICS,HOWTO100M,YT1B,IMAGENET --config.data.weights="(0.056,0.188,0.318,0.188,0.25)"
   and then experiments/cooldown/vjepa2.py from RUN. The paper's mix is five sources (images as clips that repeat them);
   the released files name three of them, k710, ssv2 and howto at .335, .1 and .565.
HARDWARE: published on 16 nodes of 8 GPUs, 24 clips each; `vjepa train --dry-run` tells the cost of other machines
PUBLISHED NUMBER: ViT-g before the cooldown, attentive probe: IN1K 83.8, COIN 89.1, SSv2 75.1, K400 85.8 (table 14)
MEASURED: not run
"""

from ml_collections import ConfigDict

ENCODERS = {"vitl": "vit_large", "vith": "vit_huge", "vitg": "vit_giant_xformers"}
VARIANTS = tuple(ENCODERS)


def get_config(arg: str = "vitl") -> ConfigDict:
    config = ConfigDict()
    # 12k warm-up + 228k constant for ViT-g, "until plateau" for L and H. Released: 800 epochs of 300 steps for g; its
    # files for L and H say 10 epochs, a placeholder
    config.steps = 240_000
    config.batch_size = 3072
    config.seed = 239

    config.data = ConfigDict()
    config.data.path = ""
    config.data.num_frames = 16
    config.data.fps = 4.0  # released: a whole number of frames apart, which makes 4.29 fps of 30 fps video
    config.data.resolution = 256
    config.data.random_resize_scale = (0.3, 1.0)
    config.data.random_resize_aspect = (0.75, 1.35)
    config.data.hflip = True
    config.data.num_workers = 8

    config.model = ConfigDict()
    config.model.variant = ENCODERS[arg]
    config.model.position = "rope_tiled"  # the released weights' rotation; V-JEPA 2.1 corrects it
    # as fast as keeping all, and 21 (L) or 44 GiB (g) with 24 clips a GPU; chips of 16 GiB need "full"
    config.model.remat = "dots"
    config.model.predictor = ConfigDict({"embed_dim": 384, "depth": 12, "num_heads": 12})
    config.model.predictor.num_mask_tokens = 2  # released weights hold 10
    config.model.predictor.mask_token_per_group = True  # released: both mask groups share one token

    config.masks = ConfigDict()
    config.masks.groups = (
        {"num_blocks": 8, "spatial_scale": (0.15, 0.15), "aspect_ratio": (0.75, 1.5)},
        {"num_blocks": 2, "spatial_scale": (0.7, 0.7), "aspect_ratio": (0.75, 1.5)},
    )
    config.masks.policy = "uniform"  # released: first_k, in truncation groups of 24

    config.optim = ConfigDict()
    config.optim.start_lr = 1e-4
    config.optim.lr = 5.25e-4
    config.optim.warmup_steps = 12_000
    config.optim.schedule = "constant"
    config.optim.weight_decay = 0.04
    config.ema = ConfigDict({"start": 0.99925, "end": 0.99925})

    config.checkpoint = ConfigDict({"every_steps": 1500, "keep_every_steps": 60_000})
    config.log = ConfigDict({"every_steps": 10, "health_every_steps": 300, "images_every_steps": 15_000})
    return config
