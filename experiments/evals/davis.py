"""DAVIS 2017: the first frame's objects carried on by the likeness of frozen features, as DINO is evaluated.

COMMAND: vjepa eval --config experiments/evals/davis.py --checkpoint RUN --config.davis.path=DAVIS
   (as RVM and CRW are: --config.davis.method=crw --config.davis.size=480; never compare one with the other)
HARDWARE: one GPU; a CPU for --config.davis.size=128
PUBLISHED NUMBER: J&F, same way: DINO ViT-S/16 61.8, ViT-S/8 69.9, ViT-B/16 62.3, ViT-B/8 71.4
MEASURED: not at this size. Of the demo's encoder (32 px, patch 8, 400 steps) at 128 px on 8 sequences of DAVIS 2016, 4
   minutes on 2 CPU cores: J&F 20.1 (10.8 to 28.3), random init 18.6, raw pixels 19.3, copy of the first mask 28.5
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"davis": ConfigDict({"path": "", "method": "dino", "size": 480, "frames": "repeated"})})
