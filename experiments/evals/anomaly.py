"""Fights against no fights in 300 clips of surveillance cameras: prediction error, distance to normal, linear probe.

COMMAND: vjepa eval --config experiments/evals/anomaly.py --checkpoint RUN --config.anomaly.path=FOLDER
   (FOLDER/noFight/*.mp4 and FOLDER/fight/*.mp4: the Surveillance Camera Fight data set)
HARDWARE: minutes on one GPU or, for encoders of 64 pixels and less, on 2 CPU cores
PUBLISHED NUMBER: none by this protocol; supervised networks are published with random splits, in which clips of one
   recording lie on both sides
MEASURED: not run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"anomaly": ConfigDict({"path": "", "normal": "noFight", "anomalous": "fight"})})
