"""YouTube-VOS: objects carried on by the likeness of frozen features, on train videos that are held out locally.

COMMAND: vjepa eval --config experiments/evals/youtube_vos.py --checkpoint RUN --config.youtube_vos.path=TRAIN
   as DINO; youtube_vos.py:crw and youtube_vos.py:vjepa21 as in davis.py. Masks for the server, which alone has the
   labels of the valid set: --config.youtube_vos.valid=VALID --config.youtube_vos.submission=FOLDER, then zip it
HARDWARE: one GPU; a CPU for --config.youtube_vos.size=128 and a few videos (--config.youtube_vos.videos)
PUBLISHED NUMBER: on another local split (20 % of train) in V-JEPA 2.1's way:
   V-JEPA 2 ViT-g 53.7, V-JEPA 2.1 ViT-g 72.3, ViT-G 72.7, DINOv3 7B 74.1
MEASURED: not run: the data were not at hand; on folders made in its layout it is tested
"""

from ml_collections import ConfigDict

VARIANTS = ("dino", "crw", "vjepa21")


def get_config(method: str = "dino") -> ConfigDict:
    settings = {"path": "", "valid": "", "submission": "", "method": method, "size": 480, "frames": "both"}
    return ConfigDict({"youtube_vos": ConfigDict(settings)})
