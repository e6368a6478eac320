"""vjepa_jax: pre-train V-JEPA 2 on video in JAX, and use the encoder.

    import vjepa_jax
    encoder = vjepa_jax.load("runs/demo")
    features = encoder(video)      # uint8 [T, H, W, 3] or [B, T, H, W, 3] -> float32 [(B,) T', H', W', D]

Importing this package imports no jax, so that data workers and `vjepa --help` start fast.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["Encoder", "load"]


def __getattr__(name: str):
    if name in __all__:
        return getattr(importlib.import_module("vjepa_jax.encoder"), name)
    raise AttributeError(f"module 'vjepa_jax' has no attribute {name!r}")
