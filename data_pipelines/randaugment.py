"""RandAugment of clips (arXiv 1909.13719): a few random operations of Pillow, the same for all frames of a clip.

Operations, ranges and probabilities are those of timm (timm/data/auto_augment.py) and of the probes of V-JEPA
(facebookresearch/vjepa2, src/datasets/utils/video/randaugment.py): bicubic, grey where nothing is left of the frame.
As there, AutoContrast, Equalize and Contrast look at each frame on its own.

Measured, processor time on one core for 16 frames with "rand-m7-n4-mstd0.5-inc1", on average: 60 to 80 ms at 320x240,
0.7 to 0.9 s at 1280x720, because it comes before the crop: store videos at a short side near the one you train on. Four
fifths of it are bicubic rotations, shears and shifts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vjepa_jax.config import RandAugment

Operation = tuple[str, float]  # a name of OPERATIONS and its argument; those without one ignore it

_PROBABILITY = 0.5  # of an operation that was chosen
_TOP_LEVEL = 10.0
_GREY = (128, 128, 128)


def _warp(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=_GREY)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": lambda image, degrees: image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_GREY),
    "Posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": lambda image, add: image.point([min(i + int(add), 255) if i < 128 else i for i in range(256)] * 3),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, share: _warp(image, (1, share, 0, 0, 1, 0)),
    "ShearY": lambda image, share: _warp(image, (1, 0, 0, share, 1, 0)),
    "TranslateX": lambda image, share: _warp(image, (1, 0, share * image.width, 0, 1, 0)),
    "TranslateY": lambda image, share: _warp(image, (1, 0, 0, 0, 1, share * image.height)),
}


def argument(name: str, strength: float, sign: int, increasing: bool) -> float:
    """The argument of an operation: degrees, bits, a threshold, a factor, or a share of the frame.

    Args:
      strength: level / 10, in [0, 1].
      sign: 1 or -1, the direction where an operation has two.
      increasing: a higher level always changes more (timm's "inc1").
    """
    match name:
        case "Rotate":
            return sign * 30.0 * strength
        case "ShearX" | "ShearY":
            return sign * 0.3 * strength
        case "TranslateX" | "TranslateY":
            return sign * 0.45 * strength
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return 1.0 + sign * 0.9 * strength if increasing else 0.1 + 1.8 * strength
        case "Posterize":
            return 4 - int(4 * strength) if increasing else int(4 * strength)
        case "Solarize":
            return 256 - int(256 * strength) if increasing else int(256 * strength)
        case "SolarizeAdd":
            return int(110 * strength)
    return 0.0


def draw(policy: RandAugment, rng: np.random.Generator) -> list[Operation]:
    """The operations for one clip: `policy.num_ops` with replacement, each left out with a probability of a half."""
    names = list(OPERATIONS)
    drawn = []
    for number in rng.integers(len(names), size=policy.num_ops):
        used, level, sign = rng.random() < _PROBABILITY, rng.normal(policy.magnitude, policy.std), rng.choice((-1, 1))
        if used:
            strength = min(max(level, 0.0), _TOP_LEVEL) / _TOP_LEVEL
            drawn.append((names[number], argument(names[number], strength, int(sign), policy.increasing)))
    return drawn


def apply(operations: Sequence[Operation], frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames uint8[H, W, 3] after the operations, one at a time. An array that comes again gives the same again."""
    if not operations:
        yield from frames
        return
    before = result = None
    for frame in frames:
        if frame is not before:
            image = Image.fromarray(frame)
            for name, value in operations:
                image = OPERATIONS[name](image, value)
            before, result = frame, np.asarray(image)
        yield result
