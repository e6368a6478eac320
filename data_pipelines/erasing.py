"""Random erasing (arXiv 1708.04896): a random box of a clip, the same in all frames, is filled with noise.

The probes of V-JEPA fill it after normalisation, with N(0, 1) for every value ("pixel" mode of timm's random erasing;
facebookresearch/vjepa2, src/datasets/utils/video/randerase.py). Here clips travel to the device as uint8 and are
normalised there, so the noise is made of pixels: 255 (mean + std z), rounded and clipped to 0..255. Normalised, it is
N(0, 1) in steps of 0.02, with the tails cut where pixels end: below -2.1, -2.0, -1.8 and above 2.2, 2.4, 2.6 for red,
green and blue, which are 3 to 4 % of the values. Nothing else of the batch or of the device code has to know of it.
"""

import numpy as np

from data_pipelines.augment import fitting_box

_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, as in vjepa_jax/ops/patches.py
_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)
_AREA = (0.02, 1 / 3)  # of the frame
_ASPECT = (0.3, 1 / 0.3)
_TRIES = 100


def erase(clip: np.ndarray, rng: np.random.Generator) -> None:
    """Fills a random box of uint8[T, H, W, 3] with noise, in place: one box, new noise in every frame.

    The area is uniform, the aspect ratio log-uniform, the place uniform; boxes as high or wide as the frame, which
    timm refuses, may occur.
    """
    box = fitting_box(*clip.shape[1:3], _AREA, _ASPECT, _TRIES, rng)
    if box is None:  # the frame is a few pixels wide
        return
    top, left, height, width = box
    for frame in clip:
        noise = rng.standard_normal((height, width, 3), np.float32)
        frame[top : top + height, left : left + width] = np.clip(np.rint(_MEAN + _STD * noise), 0, 255)
