"""Fights against no fights in 300 clips of surveillance cameras: prediction error, distance to normal, linear probe.

COMMAND: vjepa eval --config experiments/evals/anomaly.py --checkpoint RUN --config.anomaly.path=FOLDER
   (FOLDER/noFight/*.mp4 and FOLDER/fight/*.mp4: the Surveillance Camera Fight data set)
HARDWARE: minutes on one GPU or, for encoders of 64 pixels and less, on 2 CPU cores
PUBLISHED NUMBER: none by this protocol; supervised networks are published with random splits, in which clips of one
   recording lie on both sides
MEASURED: of the demo's encoder (8 frames of 32 px, 400 steps on the embedded world), 3 minutes on 2 shared CPU cores,
   AUROC by prediction error 40.1 (32.5 to 48.3), random init 51.4, copy of the last step 71.6, of the last pixels 75.6
   (70.2 to 81.2): fights move more, and that alone tells more than this encoder's error. By distance to normal 45.4, by
   linear probe 61.5 (52.2 to 69.9), random init 61.5, raw pixels 65.9, single frame 61.4. Of a ViT-S/16 after 2,600
   steps on real clips (experiments/benchmarks/vits_folder_h100_202611.md), at 128 px on one H100, 91 s: by prediction
   error 52.5 (42.9 to 62.2), random init 50.3, copy of the last pixels 73.8; by linear probe 63.5 (54.6 to 71.3),
   random init 63.5, raw pixels 65.2

The files do not say which clips were cut from one recording: clips whose backgrounds (the median frame on 16 x 16
cells) correlate by more than .75 are taken as one, which by eye is right for nearly all such pairs and makes 155
sources of 300 clips. Clips of one recording whose camera moves or changes may still be parted.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"anomaly": ConfigDict({"path": "", "normal": "noFight", "anomalous": "fight"})})
