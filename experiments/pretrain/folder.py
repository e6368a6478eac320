"""Pre-train on your own videos: any folder, CSV manifest or ArrayRecord files.

COMMAND: vjepa train --config experiments/pretrain/folder.py --config.data.path=DIR --workdir RUN
   on a laptop CPU add --config.model.variant=vit_tiny --config.batch_size=8 --config.model.dtype=float32
   several sources, mixed: --config.data.path=DIR_A,DIR_B --config.data.weights="(0.7,0.3)"
HARDWARE: one GPU of 80 GB trains ViT-S at batch 64 (16 frames of 128 px); more devices share the batch by themselves
PUBLISHED NUMBER: none, the data is yours
MEASURED: experiments/benchmarks/
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 10_000
    config.batch_size = 64
    config.seed = 0

    config.data = ConfigDict()
    config.data.path = ""
    config.data.num_frames = 16
    config.data.fps = 8.0
    config.data.resolution = 128
    config.data.random_resize_scale = (0.3, 1.0)
    config.data.random_resize_aspect = (0.75, 1.35)
    config.data.hflip = True
    config.data.num_workers = 0

    config.model = ConfigDict()
    config.model.variant = "vit_small"
    config.model.patch_size = 16
    # the published predictor (12 x 384) costs more than a ViT-S encoder; this one keeps the balance of a ViT-L
    config.model.predictor = ConfigDict({"embed_dim": 192, "depth": 6, "num_heads": 3})

    config.optim = ConfigDict()
    config.optim.lr = 6e-4
    config.optim.start_lr = 1e-4
    config.optim.warmup_steps = 500
    config.optim.clip_norm = 1.0  # small batches spike; the published recipe, with 3072 clips, does not clip

    # of a run of 10,000 steps: .99925 averages over 1,333 steps
    config.ema = ConfigDict({"start": 0.996, "end": 0.9995})

    config.checkpoint = ConfigDict({"every_steps": 1000})
    return config
