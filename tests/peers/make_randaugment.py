"""Writes tests/fixtures/randaugment.npz: a small frame and what timm's operations make of it.

python tests/peers/make_randaugment.py TIMM/data/auto_augment.py   (of timm 1.0.20; that file needs Pillow, not torch)
"""

import importlib.util
import pathlib
import sys

import numpy as np
from PIL import Image

LEVELS = (2.6, 7.3)
OPTIONS = {"resample": Image.Resampling.BICUBIC, "fillcolor": (128, 128, 128)}  # as V-JEPA sets them


def main(source: str) -> None:
    spec = importlib.util.spec_from_file_location("auto_augment", source)
    timm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(timm)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(20, 230, (3, 4, 3), dtype=np.uint8))
    frame = np.asarray(coarse.resize((28, 20), Image.Resampling.BICUBIC))  # Equalize does nothing to 255 pixels
    results = {"frame": frame}
    for increasing, names in enumerate((timm._RAND_TRANSFORMS, timm._RAND_INCREASING_TRANSFORMS)):
        for name in names:
            for level in LEVELS:
                for sign in (-1, 1):
                    timm._randomly_negate = lambda value, sign=sign: sign * value
                    to_argument = timm.LEVEL_TO_ARG[name]
                    arguments = to_argument(level, {}) if to_argument else ()
                    image = timm.NAME_TO_OP[name](Image.fromarray(frame), *arguments, **OPTIONS)
                    ours = name.removesuffix("Increasing").removesuffix("Rel")
                    results[f"{ours} {level} {sign} {increasing}"] = np.asarray(image)
    # Many operations have no level, sign or second form.
    results = {key: image for image, key in {(i.tobytes(), k.split()[0]): (i, k) for k, i in results.items()}.values()}
    target = pathlib.Path(__file__).parent.parent / "fixtures" / "randaugment.npz"
    np.savez_compressed(target, **results)
    print(f"{target}: {len(results)} arrays, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
