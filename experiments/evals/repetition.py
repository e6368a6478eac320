"""QUVA repetition: cycles counted in the self-similarity of frozen features over time, without training.

COMMAND: vjepa eval --config experiments/evals/repetition.py --checkpoint RUN --config.repetition.path=FOLDER
   (FOLDER/repetition/NAME.mp4 and FOLDER/repetition_annotations/NAME.npy, the frames in which cycles end)
HARDWARE: minutes on one GPU or, for encoders of 64 pixels and less, on 2 CPU cores
PUBLISHED NUMBER: none on videos that are cut short, as the ones here are
MEASURED: of the demo's encoder (8 frames of 32 px, 400 steps on the embedded world), 2 minutes on 2 shared CPU cores,
   52 videos of which 24 are cut short: off-by-one accuracy 67.3 (55.8 to 78.8), random init 81.4, raw pixels 82.7,
   single frame 67.3, best constant count 57.7; error by the true count .305 (.176 to .460), .135, .131, .278, .349. Of
   a ViT-S/16 after 2,600 steps on real clips (experiments/benchmarks/vits_folder_h100_202611.md), at 128 px on one
   H100, 107 s: 78.8 (67.3 to 88.5), random init 72.4, raw pixels 78.8; error .160 (.087 to .239), .189, .149
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"repetition": ConfigDict({"path": ""})})
