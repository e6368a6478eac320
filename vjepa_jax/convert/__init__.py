"""Weights in and out, without torch: official PyTorch files, Hugging Face folders, and folders of our own.

`formats.read` reads any of them into `weights.Weights`, `formats.write` writes; the other modules hold one format each.
"""


class ConvertError(ValueError):
    """Weights that cannot be read or written. The message is one line and says what to do."""
