"""DAVIS 2017: the first frame's objects carried on by the likeness of frozen features, in three published ways.

COMMAND: vjepa eval --config experiments/evals/davis.py --checkpoint RUN --config.davis.path=DAVIS
   as DINO; davis.py:crw as RVM and CRW, davis.py:vjepa21 as V-JEPA 2.1; never compare one with the other. A folder of
   DAVIS 2016 (black and white masks) makes scores of davis2016
HARDWARE: one GPU; a CPU for --config.davis.size=128
PUBLISHED NUMBER: J&F by dino: DINO ViT-S/16 61.8, ViT-S/8 69.9, ViT-B/16 62.3, ViT-B/8 71.4; CRW by its own way 67.6.
   In V-JEPA 2.1's way: V-JEPA 2 ViT-g 52.5, V-JEPA 2.1 ViT-g 68.1, DINOv3 7B 71.1
MEASURED: not at this size. Of the demo's encoder (32 px, patch 8, 400 steps) at 128 px on 8 sequences of DAVIS 2016 by
   dino, frames repeated, 5 minutes on 2 busy CPU cores: J&F 22.6 (12.9 to 30.9), random init 20.9, raw pixels 21.4,
   copy of the first mask 28.5. With positions interpolated 22.6, random init 20.9; and in windows 21.0 (11.5 to 29.7),
   random init 20.5, raw pixels 20.4. Of a ViT-S/16 after 4,740 steps of 64 clips of 16 frames at 128 px
   (experiments/benchmarks/vits_folder_h100_202611.md), on frames and masks shrunk to 240 px, one H100 (jax 0.11.2),
   98 s: J&F 40.5 (28.8 to 48.3), in windows 41.0 (29.8 to 49.5); random init 19.8, 18.7; raw pixels 19.0, 18.1; copy of
   the first mask 28.9 (22.2 to 34.3). After 2,600 steps with a faster target 29.1, 32.0
"""

from ml_collections import ConfigDict

VARIANTS = ("dino", "crw", "vjepa21")


def get_config(method: str = "dino") -> ConfigDict:
    return ConfigDict({"davis": ConfigDict({"path": "", "method": method, "size": 480, "frames": "both"})})
