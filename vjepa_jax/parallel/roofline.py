"""The least time that a step can take on a chip: its compute, memory and networks, each at its peak.

Assumptions, those of "How to Scale Your Model" (jax-ml.github.io/scaling-book): a collective keeps all links of the
torus axes that its group extends along busy, in both directions where the group covers an axis that closes to a ring,
else in one; permutations of a collective matmul go both ways at once. Where a collective extends over several slices,
it runs within each of them, and every chip exchanges its share with its peers in the other slices over the network of
the data centre (DCN), at its part of its host's bandwidth. Collectives of one network follow one another. Nothing else
costs time, and compute, memory and networks overlap: the step takes as long as the slowest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vjepa_jax.parallel.chips import Chip
from vjepa_jax.parallel.collectives import Collective, sent_bytes, slice_of


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
        slices = len({slice_of(device) for device in members})
        own = len(members) // slices
        shares = {"ici": (one.size, own, chip.ici_link * _links(one, members, extent, chip.ring))}
        if slices > 1:
            if one.kind == "collective-permute":  # goes over one network or the other
                shares = {}
            between = one.size / own
            if one.kind == "all-to-all":  # what is for other slices is no one else's to send
                shares = {"ici": (one.size / slices, *shares["ici"][1:])}
                between = one.size
            shares["dcn"] = (between, slices, chip.dcn)
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
