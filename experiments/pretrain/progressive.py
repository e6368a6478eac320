"""A long ladder: from 8 frames of 128 px to 128 frames of 384 px, patches of 16 x 16 px throughout.

COMMAND: vjepa train --config experiments/pretrain/progressive.py:vitl --config.data.path=DIR --workdir RUN
   to try the ladder on a laptop CPU, in minutes: vjepa data world --out runs/world --num pretrain=2000 ; then
   vjepa train --config experiments/pretrain/progressive.py:runlocal --config.data.path=runs/world/manifest.csv ...
HARDWARE: `vjepa train --config ... --dry-run --devices 128 --chip h100` prints every stage's memory and device-hours
PUBLISHED NUMBER: none for this ladder. V-JEPA 2 climbs one step, 16 frames of 256 px to 64 of 384, for 8.4 times less
   GPU time than training at 64 x 384 throughout, and gains 0.7 points on average
MEASURED: not run; runlocal with 500 videos: the three stages in 6 min on 2 CPU cores that others used too (2026-11-24)

Why a ladder: tokens grow with frames x pixels, attention with their square. A clip of the first stage has 256 tokens,
one of the last 36,864, and most of what an encoder learns does not need the long one. Rotary positions carry over:
each stage continues the angles of the one before.

Why 128 frames: at 4 frames a second they are 32 s, the span of a procedure instead of a gesture. The paper's cooldowns
on 128 and 256 frames gained nothing on its tasks, which are answered from seconds; the last stage is for those that are
not, and is our extension. Leave it off (end at 64f-384) to stay with what is published. It needs long videos: a shorter
one fills its clip by repeating the last frame.
"""

from ml_collections import ConfigDict

ENCODERS = {"vitl": "vit_large", "vitg": "vit_giant_xformers"}
VARIANTS = (*ENCODERS, "runlocal")

PEAK, FINAL = 5.25e-4, 1e-6
MIDDLE = FINAL + (PEAK - FINAL) / 3  # where one straight line over 8k + 4k steps is after the first 8k

# The seed changes so that a stage does not begin with the videos the one before began with.
LADDER = (
    {"name": "8f-128", "steps": 60_000, "optim.warmup_steps": 12_000},
    {"name": "16f-224", "steps": 140_000, "data.num_frames": 16, "data.resolution": 224, "seed": 1},
    {"name": "16f-256", "steps": 40_000, "data.num_frames": 16, "data.resolution": 256, "seed": 2},
    {"name": "32f-256", "steps": 12_000, "data.num_frames": 32, "data.resolution": 256, "seed": 3},
    {"name": "64f-384", "steps": 8_000, "data.num_frames": 64, "data.resolution": 384, "seed": 4,
     "optim.schedule": "linear", "optim.final_lr": MIDDLE},
    {"name": "128f-384", "steps": 4_000, "data.num_frames": 128, "data.resolution": 384, "seed": 5,
     "optim.schedule": "linear", "optim.lr": MIDDLE, "optim.final_lr": FINAL},
)  # fmt: skip


def get_config(arg: str = "vitl") -> ConfigDict:
    if arg == "runlocal":
        return local()
    config = ConfigDict()
    config.batch_size = 3072
    config.seed = 0
    config.stages = LADDER
    config.init = ConfigDict({"optimizer": True})  # Adam goes on with its moments at every border

    config.data = ConfigDict()
    config.data.path = ""
    config.data.num_frames = 8
    config.data.fps = 4.0
    config.data.resolution = 128
    config.data.num_workers = 8

    config.model = ConfigDict()
    config.model.variant = ENCODERS[arg]
    config.model.remat = "full"

    config.optim = ConfigDict()
    config.optim.start_lr = 1e-4
    config.optim.lr = PEAK
    config.optim.schedule = "constant"
    config.ema = ConfigDict({"start": 0.99925, "end": 0.99925})

    config.checkpoint = ConfigDict({"every_steps": 500, "keep_every_steps": 20_000})
    config.log = ConfigDict({"every_steps": 10, "health_every_steps": 300, "images_every_steps": 5000})
    return config


def local() -> ConfigDict:
    """Three rungs of the same kind for the embedded world's 32-pixel videos of 8 frames."""
    config = ConfigDict()
    config.batch_size = 32
    config.seed = 0
    config.stages = (
        {"name": "4f-16", "steps": 100, "optim.warmup_steps": 20},
        {"name": "8f-16", "steps": 50, "data.num_frames": 8, "seed": 1},
        {"name": "8f-32", "steps": 30, "data.num_frames": 8, "data.resolution": 32, "seed": 2,
         "optim.schedule": "linear", "optim.final_lr": 1e-5},
    )  # fmt: skip
    config.init = ConfigDict({"optimizer": True})
    config.data = ConfigDict({"path": "", "split": "pretrain", "num_frames": 4, "frame_step": 1, "resolution": 16})
    config.data.random_resize_scale = (1.0, 1.0)
    config.data.random_resize_aspect = (1.0, 1.0)
    config.model = ConfigDict({"variant": "vit_micro", "patch_size": 4, "dtype": "float32", "gelu": "tanh"})
    config.model.predictor = ConfigDict({"embed_dim": 64, "depth": 2, "num_heads": 2})
    config.optim = ConfigDict({"lr": 2e-3, "start_lr": 2e-4})
    config.ema = ConfigDict({"start": 0.99, "end": 0.99})
    config.checkpoint = ConfigDict({"every_steps": 50})
    config.log = ConfigDict({"every_steps": 10, "health_every_steps": 50, "images_every_steps": 100})
    return config
