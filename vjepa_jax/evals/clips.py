"""How the videos that a protocol trains on are cut and augmented."""

from typing import Any

from vjepa_jax.config import AugmentConfig, DataConfig


def training_clips(cfg: Any, **others: Any) -> DataConfig:
    """From the settings that protocols have in common, and `others`."""
    return DataConfig(
        path=cfg.path,
        num_frames=cfg.frames,
        resolution=cfg.resolution,
        random_resize_scale=cfg.crop_scale,
        random_resize_aspect=cfg.crop_aspect,
        augment=AugmentConfig(rand_augment=cfg.rand_augment, erase_prob=cfg.erase_prob),
        num_workers=cfg.num_workers,
        num_threads=cfg.num_threads,
        **others,
    )
