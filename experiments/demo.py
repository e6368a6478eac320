"""The demo that `make train` runs: V-JEPA 2 on the embedded world, from scratch, on a laptop CPU.

COMMAND: make train
   (vjepa data world --out runs/demo/world ... ; vjepa train --config experiments/demo.py --workdir runs/demo ...)
HARDWARE: 2 CPU cores, under 10 minutes with the installation, under 6 GiB of memory
PUBLISHED NUMBER: none, the world is ours
MEASURED: README.md, "The demo's numbers"
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 400
    config.batch_size = 64
    config.seed = 0

    config.data = ConfigDict()
    config.data.path = "runs/demo/world/manifest.csv"
    config.data.split = "pretrain"
    config.data.num_frames = 8
    config.data.frame_step = 1
    config.data.resolution = 32
    config.data.random_resize_scale = (1.0, 1.0)  # a crop would change the speeds
    config.data.random_resize_aspect = (1.0, 1.0)
    config.data.hflip = True

    config.model = ConfigDict()
    config.model.variant = "vit_micro"
    config.model.patch_size = 8
    config.model.dtype = "float32"  # a CPU has no fast bfloat16
    config.model.gelu = "tanh"
    config.model.predictor = ConfigDict({"embed_dim": 64, "depth": 2, "num_heads": 2})

    config.optim = ConfigDict()
    config.optim.lr = 2e-3
    config.optim.start_lr = 2e-4
    config.optim.warmup_steps = 30

    # an EMA of .99925 would average over 1,333 steps, more than this run has
    config.ema = ConfigDict({"start": 0.99, "end": 0.99})

    config.checkpoint = ConfigDict({"every_steps": 200})
    config.log = ConfigDict({"every_steps": 10, "health_every_steps": 50, "images_every_steps": 300})
    config.eval = ConfigDict({"path": "runs/demo/world/manifest.csv", "num_labels": (100, 2000), "seeds": 3})
    return config
