"""DAVIS 2017: the first frame's objects carried on by the likeness of frozen features, as DINO or as RVM and CRW do it.

COMMAND: vjepa eval --config experiments/evals/davis.py --checkpoint RUN --config.davis.path=DAVIS
   (davis.py:crw for the other way; never compare one with the other)
HARDWARE: one GPU; a CPU for --config.davis.size=128
PUBLISHED NUMBER: J&F by dino: DINO ViT-S/16 61.8, ViT-S/8 69.9, ViT-B/16 62.3, ViT-B/8 71.4; CRW by its own way 67.6
MEASURED: not at this size. Of the demo's encoder (32 px, patch 8, 400 steps) at 128 px on 8 sequences of DAVIS 2016, 4
   minutes on 2 CPU cores: J&F 20.1 (10.8 to 28.3), random init 18.6, raw pixels 19.3, copy of the first mask 28.5
"""

from ml_collections import ConfigDict

VARIANTS = ("dino", "crw")


def get_config(method: str = "dino") -> ConfigDict:
    return ConfigDict({"davis": ConfigDict({"path": "", "method": method, "size": 480, "frames": "repeated"})})
