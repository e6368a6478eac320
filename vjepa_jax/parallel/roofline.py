"""The least time that a step can take on a chip: its compute, memory and networks, each at its peak.

Assumptions, those of "How to Scale Your Model" (jax-ml.github.io/scaling-book): a collective keeps all links of the
torus axes that its group extends along busy, in both directions where the group covers an axis that closes to a ring,
else in one; permutations of a collective matmul go both ways at once. Between slices a collective first runs within
each slice, then every chip exchanges its share over the network of the data centre. Collectives of one network follow
one another. Nothing else costs time, and compute, memory and networks overlap: the step takes as long as the slowest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vjepa_jax.parallel.chips import Chip
from vjepa_jax.parallel.collectives import Collective, sent_bytes


def traffic(
    collectives: Sequence[Collective], mesh: Mapping[str, int], devices: Sequence[Any], chip: Chip
) -> dict[str, dict[str, float]]:
    """What one device sends in a step, for each set of mesh axes ("fsdp", "replica+fsdp") and network ("ici", "dcn").

    Args:
      mesh: sizes of its axes by name.
      devices: of the mesh, in its order, with `coords` and `slice_index`.

    Returns:
      {"fsdp ici": {"bytes", "seconds"}, ...}.
    """
    extent = [max(places) + 1 for places in zip(*(device.coords for device in devices), strict=True)]
    table: dict[str, dict[str, float]] = {}
    for one in collectives:
        axes = "+".join(one.axes(mesh)) or "none"
        members = [devices[i] for i in one.groups[0]]
        slices = len({_slice(device) for device in members})
        own = len(members) // slices
        shares = {"ici": (one.size, own, chip.ici_link * _links(one, members, extent, chip.ring))}
        if slices > 1:
            pair = one.kind == "collective-permute"  # goes over one network or the other
            shares = ({} if pair else shares) | {"dcn": (one.size / own, slices, chip.dcn)}
        for network, (size, count, speed) in shares.items():
            sent = one.times * sent_bytes(one.kind, size, count)
            if sent:
                total = table.setdefault(f"{axes} {network}", {"bytes": 0.0, "seconds": 0.0})
                total["bytes"] += sent
                total["seconds"] += sent / speed
    return table


def _links(one: Collective, members: Sequence[Any], extent: Sequence[int], ring: int) -> int:
    """Links over which one chip sends at the same time."""
    if one.kind == "collective-permute":
        return 2
    lengths = [len(set(places)) for places in zip(*(device.coords for device in members), strict=True)]
    return sum(
        2 if length == whole and whole % ring == 0 else 1
        for length, whole in zip(lengths, extent, strict=True)
        if length > 1
    )


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", 0) or 0


def roofline(
    chip: Chip, flops: float, memory_bytes: float, table: Mapping[str, Mapping[str, float]]
) -> dict[str, float | str]:
    """Seconds of compute, memory and networks for one device's `flops` and bytes, and which of them is the limit."""
    network = lambda name: math.fsum(row["seconds"] for key, row in table.items() if key.endswith(name))
    seconds = {
        "compute": flops / chip.flops,
        "hbm": memory_bytes / chip.hbm_bandwidth,
        "ici": network("ici"),
        "dcn": network("dcn"),
    }
    limit = max(seconds, key=seconds.get)
    return seconds | {"step": seconds[limit], "limit": limit}
