"""EgoGestAR, 160 first-person gestures: which of 10, by the attentive probe, cross-validated over 4 folds of 4 scenes.

COMMAND: vjepa eval --config experiments/evals/gestures.py --checkpoint RUN --config.classification.path=FOLDER
   (FOLDER/labels.csv with the columns path,label,scene; with :cached, on features that are encoded once, for a CPU;
   more decoders: --config.classification.num_workers=8)
HARDWARE: minutes on one GPU; for :cached and encoders of 64 pixels and less, on 2 CPU cores
PUBLISHED NUMBER: none by this protocol
MEASURED: :cached, head chosen on held-out. With the demo's encoder (8 frames of 32 px, 400 steps on the embedded
   world), 1 minute on 2 CPU cores: 11.2 (7.5 to 15.6), random init 13.1, raw pixels 20.6 (13.8 to 28.1), single frame
   13.8, shuffled frames 10.0. With a ViT-S/16 after 4,740 steps on real clips (16 frames of 128 px,
   experiments/benchmarks/vits_folder_h100_202611.md), 90 videos of scenes 08 to 16 in 3 folds, 25 minutes on 2 busy CPU
   cores: 31.1 (24.4 to 37.8), random init 31.1 (20.0 to 42.2), raw pixels 24.4 (18.9 to 30.0), single frame 7.8,
   shuffled frames 15.6

Most scenes recur in every class, so that looks alone do not tell the gesture (the control of single frames says how far
they do). A clip spans 3.2 seconds whatever its number of frames, and is never flipped: left would become right. Numbers
of scenes 02 to 07 do not name the same place in every class, and circlecc is numbered on its own: a place may be on
both sides of a fold, with other gestures.
"""

from ml_collections import ConfigDict

VARIANTS = ("full", "cached")


def get_config(mode: str = "full") -> ConfigDict:
    probe = ConfigDict({"path": "", "name": "gestures", "folds": 4, "frames": 0, "resolution": 0, "seconds": 3.2})
    probe.segments, probe.views = 1, 1
    probe.lrs, probe.weight_decays = (3e-3, 1e-3), (0.1,)
    probe.epochs, probe.batch_size, probe.warmup_epochs = 60, 32, 2.0
    probe.crop_scale = (0.5, 1.0)  # a gesture must stay in the picture
    probe.held_out, probe.standardize = 0.2, 4
    if mode == "cached":
        probe.cache, probe.depth, probe.dtype = True, 1, "float32"
    return ConfigDict({"classification": probe})
