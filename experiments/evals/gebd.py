"""Generic event boundaries of Kinetics-GEBD: change of features, error of the prediction, and a trained classifier.

COMMAND: vjepa eval --config experiments/evals/gebd.py --checkpoint RUN --config.boundaries.path=GEBD
   (with :world, of videos of the embedded world joined together, and with :behaviours, of one object of that world
   that changes what it does: they need no data)
HARDWARE: one GPU; 2 CPU cores for :world and :behaviours
PUBLISHED NUMBER: F1@.05: without labels SceneDetect .275, PA .396, UBoCo .703; trained PC .625, DDM-Net .764
MEASURED: not on Kinetics. :world with the demo's encoder (400 steps), 64 videos, 2 minutes on 2 CPU cores, F1@.05: by
   change .780 (.729 to .828), random init .819, raw pixels .799, equal distances .385; by error .113, random init .350
"""

from ml_collections import ConfigDict

VARIANTS = ("kinetics", "world", "behaviours")


def get_config(data: str = "kinetics") -> ConfigDict:
    return ConfigDict({"boundaries": ConfigDict({"data": data, "frame_step": 2 if data == "kinetics" else 1})})
