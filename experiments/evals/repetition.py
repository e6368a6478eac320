"""QUVA repetition: cycles counted in the self-similarity of frozen features over time, without training.

COMMAND: vjepa eval --config experiments/evals/repetition.py --checkpoint RUN --config.repetition.path=FOLDER
   (FOLDER/repetition/NAME.mp4 and FOLDER/repetition_annotations/NAME.npy, the frames in which cycles end)
HARDWARE: minutes on one GPU or, for encoders of 64 pixels and less, on 2 CPU cores
PUBLISHED NUMBER: none on videos that are cut short, as the ones here are
MEASURED: not run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"repetition": ConfigDict({"path": ""})})
