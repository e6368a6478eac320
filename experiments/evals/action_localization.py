"""Temporal action localisation on frozen features with a small anchor-free detector: THUMOS14, or the embedded world.

COMMAND: vjepa eval --config experiments/evals/action_localization.py --checkpoint RUN
         --config.action_detection.path=THUMOS14
   (with :world, of behaviours of one object in videos of the embedded world, which needs no data)
HARDWARE: one GPU; 2 CPU cores for :world
PUBLISHED NUMBER: THUMOS14 mAP@0.3:0.7, ActionFormer on I3D 66.8; with VideoMAE V2 ViT-g 69.6
MEASURED: not on THUMOS14. :world with the demo's encoder (400 steps), 3 seeds of the detector, 4 minutes on 2 CPU
   cores, mAP@0.3:0.7: 32.7 (19.9 to 45.5), random init 22.8 (16.2 to 29.4), raw pixels 24.6 (11.7 to 37.6), single
   frame 16.4 (8.1 to 24.6), segments of the usual length 9.0
"""

from ml_collections import ConfigDict

VARIANTS = ("thumos14", "world")


def get_config(data: str = "thumos14") -> ConfigDict:
    group = ConfigDict({"data": "annotated", "name": "thumos14", "frame_step": 1, "stride": 4})
    if data == "world":
        group = ConfigDict({"data": "world", "stride": 0})
        group.head = ConfigDict(
            {
                **{"dim": 64, "levels": 3, "stem": 1, "reach": 4, "length": 160, "epochs": 40, "batch_size": 8},
                **{"lr": 1e-3, "ema": 0.98, "normalizer": 20.0},
            }
        )
    return ConfigDict({"action_detection": group})
