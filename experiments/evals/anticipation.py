"""Action anticipation on EPIC-Kitchens-100 with encoder and predictor tokens (V-JEPA 2), or on the embedded world.

COMMAND: vjepa eval --config experiments/evals/anticipation.py --checkpoint RUN --config.anticipation.path=EPIC
   (EPIC: the annotations EPIC_100_train.csv, EPIC_100_validation.csv and the videos; with :vitg_384 at 384 pixels; with
   :world, of what an object of the embedded world does next, which needs no data)
HARDWARE: one GPU of 80 GB; 2 CPU cores for :world
PUBLISHED NUMBER: class-mean recall@5 of verb, noun, action: ViT-L 57.8, 53.8, 32.7; ViT-H 59.2, 54.6, 36.5;
   ViT-g 61.2, 55.7, 38.0; ViT-g 384 63.6, 57.1, 39.7 (best head on the validation set)
MEASURED: not on EPIC-Kitchens.

The released code ends the clip a second before the END of the action (reading="code"), and published numbers
presumably come from it; the paper says before its start: --config.anticipation.reading=paper.
"""

from ml_collections import ConfigDict

VARIANTS = ("vitl", "vith", "vitg", "vitg_384", "world")


def get_config(arg: str = "vitl") -> ConfigDict:
    group = ConfigDict({"data": "ek100", "resolution": 384 if arg.endswith("384") else 256})
    group.heads_at_once, group.micro_batch = 1, 8
    if arg == "world":
        group = ConfigDict({"data": "world", "k": 1, "tokens": ("both", "encoder", "predictor"), "standardize": 4})
        group.lrs, group.weight_decays, group.seeds = (3e-3, 1e-3), (1e-2,), 3
        group.epochs, group.batch_size, group.depth, group.num_heads, group.dtype = 8, 64, 2, 3, "float32"
    return ConfigDict({"anticipation": group})
