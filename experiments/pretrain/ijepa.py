"""I-JEPA pre-training on images: four target blocks, each predicted on its own (arXiv 2301.08243).

COMMAND: vjepa train --config experiments/pretrain/ijepa.py:vith14 --config.data.path=IMAGENET/train --workdir RUN
HARDWARE: published on 16 GPUs of 80 GB for 72 h (vith14), 128 images each; vith16_448: 16 images a GPU
PUBLISHED NUMBER: IN1K linear probe: ViT-H/14 79.3, ViT-H/16 at 448 px 81.1
MEASURED: not run
"""

from ml_collections import ConfigDict

PATCH_AND_PIXELS = {"vith14": (14, 224), "vith16_448": (16, 448)}
VARIANTS = tuple(PATCH_AND_PIXELS)
EPOCH = 1_281_167 // 2048  # steps that see ImageNet's training images once


def get_config(arg: str = "vith14") -> ConfigDict:
    patch, pixels = PATCH_AND_PIXELS[arg]
    config = ConfigDict()
    config.objective = "ijepa"
    config.steps = 300 * EPOCH
    config.batch_size = 2048
    config.seed = 0

    config.data = ConfigDict({"path": "", "num_frames": 1, "resolution": pixels, "num_workers": 10})
    config.data.random_resize_scale = (0.3, 1.0)
    config.data.random_resize_aspect = (3 / 4, 4 / 3)
    config.data.hflip = False

    config.model = ConfigDict({"variant": "vit_huge", "patch_size": patch, "tubelet_size": 1, "position": "sincos2d"})
    # as many heads as the encoder has; the head size of 24 is the released code's
    config.model.predictor = ConfigDict({"embed_dim": 384, "depth": 12, "num_heads": 16, "num_mask_tokens": 1})

    config.masks = ConfigDict()
    config.masks.groups = (
        {
            "kind": "separate",
            "num_blocks": 4,
            "spatial_scale": (0.15, 0.2),
            "aspect_ratio": (0.75, 1.5),
            "context_scale": (0.85, 1.0),
        },
    )
    config.loss = ConfigDict({"smooth_l1": True})

    config.optim = ConfigDict()
    config.optim.start_lr = 2e-4
    config.optim.lr = 1e-3
    config.optim.final_lr = 1e-6
    config.optim.warmup_steps = 40 * EPOCH
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 0.04
    config.optim.final_weight_decay = 0.4
    config.ema = ConfigDict({"start": 0.996, "end": 1.0})

    config.checkpoint = ConfigDict({"every_steps": 2 * EPOCH, "keep_every_steps": 50 * EPOCH})
    config.log = ConfigDict({"every_steps": 10, "health_every_steps": EPOCH, "images_every_steps": 10 * EPOCH})
    return config
