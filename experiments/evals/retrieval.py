"""Nearest-neighbour retrieval of UCF101 or HMDB51, split 1: R@1, 5, 10, 20 without training or tuning.

COMMAND: vjepa eval --config experiments/evals/retrieval.py:hmdb51 --checkpoint RUN --config.retrieval.path=FILE
HARDWARE: minutes on one GPU
PUBLISHED NUMBER: none that we have read in a paper
MEASURED: not run

FILE is a manifest with the columns path,label,split (train is searched, test asks). Read as a transfer, RUN is an
encoder that was pre-trained on the videos of UCF101 alone.
"""

from ml_collections import ConfigDict

VARIANTS = ("ucf101", "hmdb51")


def get_config(arg: str = "ucf101") -> ConfigDict:
    config = ConfigDict()
    config.retrieval = ConfigDict({"path": f"data/{arg}/manifest.csv", "name": arg})
    return config
