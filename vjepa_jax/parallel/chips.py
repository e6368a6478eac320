"""What accelerators can do, by their data sheets: the one place for these numbers.

FLOP/s are dense bf16 of one device; vendors print the double ("with sparsity") for NVIDIA, which a dense model never
reaches. TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for FLOP/s and HBM; "How to Scale Your Model"
(jax-ml.github.io/scaling-book, part 2) for the links between chips and the network of the data centre.
"""

import dataclasses
import re

from vjepa_jax.config import ConfigError
from vjepa_jax.config_build import hint

GIB = 1024.0**3


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      kinds: regular expression over jax.Device.device_kind.
      flops: dense bf16 FLOP/s.
      hbm: bytes of memory; 0 where this table does not say.
      hbm_bandwidth: bytes/s between memory and chip.
      ici_link: bytes/s one way over one of the links to the neighbours in a slice; each torus axis has two.
      dcn: bytes/s between slices, a chip's share of its host.
      ring: a torus axis closes to a ring where its length is a multiple of this.
    """

    kinds: str
    flops: float
    hbm: float = 0.0
    hbm_bandwidth: float = 0.0
    ici_link: float = 0.0
    dcn: float = 0.0
    ring: int = 0


TPUS = {
    "v4": Chip(r"TPU v4$", 275e12, 32 * GIB, 1.228e12, 45e9, 6.25e9, ring=4),
    "v5e": Chip(r"TPU v5 ?(lite|e)$", 197e12, 16 * GIB, 0.819e12, 45e9, 3.125e9, ring=16),
    "v5p": Chip(r"TPU v5p?$", 459e12, 95 * GIB, 2.765e12, 90e9, 6.25e9, ring=4),
    "v6e": Chip(r"TPU v6 ?(lite|e)$", 918e12, 32 * GIB, 1.638e12, 90e9, 12.5e9, ring=16),
}
GPUS = {
    "h100": Chip(r"G?H100(?!.*(NVL|PCIe))", 989e12),
    "h200": Chip(r"G?H200(?!.*NVL)", 989e12),
    "a100": Chip(r"A100", 312e12),
}
CHIPS = GPUS | TPUS  # by the names that people type
_OTHERS = (Chip(r"H[12]00 NVL", 835e12), Chip(r"H100 PCIe", 756e12))


def chip(name: str, option: str = "--chip") -> Chip:
    """The chip that people call `name`. Raises ConfigError, which names the `option` it was given with."""
    if name not in CHIPS:
        raise ConfigError(f"{option} {name} is not one of {', '.join(CHIPS)}{hint(name, CHIPS)}")
    return CHIPS[name]


@dataclasses.dataclass(frozen=True)
class Machine:
    """`devices` chips of one kind that reach `mfu` of their bf16 peak, recomputation not counted."""

    devices: int
    chip: str = "h100"
    mfu: float = 0.35

    def __post_init__(self):
        chip(self.chip)
        if self.devices < 1:
            raise ConfigError(f"--devices {self.devices} must be at least 1")
        if not 0.0 < self.mfu <= 1.0:
            raise ConfigError(f"--mfu {self.mfu} must lie in (0, 1], e.g. 0.35")

    @property
    def flops(self) -> float:
        """FLOP/s that one device is assumed to reach."""
        return self.mfu * chip(self.chip).flops


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak in FLOP/s of one device as jax names it, or None where it is unknown (a CPU, an unlisted one)."""
    for known in (*CHIPS.values(), *_OTHERS):
        if re.search(known.kinds, device_kind.strip(), re.IGNORECASE):
            return known.flops
    return None
