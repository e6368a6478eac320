"""Seconds of collectives on links and networks, by hand."""

import dataclasses

import numpy as np
import pytest

from vjepa_jax.parallel.chips import Chip
from vjepa_jax.parallel.collectives import Collective
from vjepa_jax.parallel.roofline import roofline, traffic

CHIP = Chip("any", flops=100.0, hbm=1e3, hbm_bandwidth=50.0, ici_link=10.0, dcn=2.0, ring=4)


@dataclasses.dataclass(frozen=True)
class Device:
    coords: tuple[int, int]
    slice_index: int | None = None


def grid(rows: int, columns: int, slices: int = 1) -> list[Device]:
    index = range(slices) if slices > 1 else [None]
    return [Device((y, x), s) for s in index for y in range(rows) for x in range(columns)]


@pytest.mark.parametrize(
    ("shape", "groups", "links"),
    [
        ((2, 4), [[0, 1, 2, 3], [4, 5, 6, 7]], 2),  # a whole row of 4, which closes to a ring
        ((2, 4), [[0, 4], [1, 5], [2, 6], [3, 7]], 1),  # a column of 2 does not
        ((2, 4), [[0, 1], [2, 3], [4, 5], [6, 7]], 1),  # nor half a row
        ((2, 4), [[0, 1, 2, 3, 4, 5, 6, 7]], 3),
        ((4, 4), [list(range(16))], 4),
    ],
)
def test_links_of_a_group(shape, groups, links):
    mesh = {"replica": shape[0], "fsdp": shape[1]}
    one = Collective("all-gather", size=80.0, times=3, groups=np.array(groups))
    (row,) = traffic([one], mesh, grid(*shape), CHIP).values()
    assert row["bytes"] == one.sent == 3 * 80.0 * (1 - 1 / len(groups[0]))
    assert row["seconds"] == pytest.approx(row["bytes"] / (links * CHIP.ici_link))


def test_between_slices_a_collective_is_hierarchical():
    mesh, devices = {"replica": 2, "fsdp": 4}, grid(1, 4, slices=2)
    whole = Collective("all-reduce", size=80.0, times=1, groups=np.arange(8)[None])
    across = Collective("all-reduce", size=80.0, times=1, groups=np.array([[0, 4], [1, 5], [2, 6], [3, 7]]))
    table = traffic([whole, across], mesh, devices, CHIP)
    assert set(table) == {"replica+fsdp ici", "replica+fsdp dcn", "replica dcn"}
    assert table["replica+fsdp ici"]["bytes"] == 2 * 80.0 * 3 / 4
    assert table["replica+fsdp dcn"]["bytes"] == 2 * 20.0 * 1 / 2  # a quarter of it each
    assert table["replica dcn"] == {"bytes": 80.0, "seconds": 40.0}


def test_permutations_go_over_one_network_in_both_directions():
    mesh, devices = {"replica": 2, "fsdp": 4}, grid(1, 4, slices=2)
    within = Collective("collective-permute", size=80.0, times=2, groups=np.array([[0, 1], [1, 0]]))
    between = Collective("collective-permute", size=80.0, times=2, groups=np.array([[0, 4], [4, 0]]))
    assert traffic([within], mesh, devices, CHIP) == {"fsdp ici": {"bytes": 160.0, "seconds": 160.0 / 20}}
    assert traffic([between], mesh, devices, CHIP) == {"replica dcn": {"bytes": 160.0, "seconds": 80.0}}


def test_an_exchange_sends_each_part_once():
    mesh, devices = {"replica": 2, "fsdp": 4}, grid(1, 4, slices=2)
    one = Collective("all-to-all", size=80.0, times=1, groups=np.arange(8)[None])
    table = traffic([one], mesh, devices, CHIP)
    assert table["replica+fsdp dcn"]["bytes"] == 40.0  # the half that is for the other slice
    assert table["replica+fsdp ici"]["bytes"] == 30.0


def test_the_slowest_part_is_the_step():
    table = {"fsdp ici": {"bytes": 1.0, "seconds": 3.0}, "replica ici": {"bytes": 1.0, "seconds": 4.0}}
    times = roofline(CHIP, flops=600.0, memory_bytes=100.0, table=table)
    assert times == {"compute": 6.0, "hbm": 2.0, "ici": 7.0, "dcn": 0.0, "step": 7.0, "limit": "ici"}
    assert roofline(CHIP, 800.0, 100.0, table)["limit"] == "compute"
