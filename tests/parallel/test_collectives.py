"""Collectives read from compiled programs: known ones of 8 CPU devices, and what TPU programs make of them."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vjepa_jax.parallel.collectives import Collective, read_collectives, sent_bytes
from vjepa_jax.parallel.compile import Topology

MESH = {"replica": 2, "fsdp": 4}
ROUNDS, ROWS, COLUMNS = 5, 16, 16  # of the scan; of a device's share


@dataclasses.dataclass(frozen=True)
class Device:
    """As libtpu describes one."""

    id: int
    slice_index: int = 0


DEVICES = [Device(i) for i in range(8)]
# two slices of 4, in which the mesh numbers the devices 0, 1, 3, 2
SLICED = [Device(100_000 * (i + 1) + k, i) for i in range(2) for k in (0, 1, 3, 2)]


def all_kinds(x_RC, _):
    x_RC = jax.lax.psum(x_RC, "replica")
    whole = jax.lax.all_gather(x_RC, "fsdp", tiled=True)
    part = jax.lax.psum_scatter(whole, ("replica", "fsdp"), tiled=True)
    moved = jax.lax.ppermute(part, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
    return jax.lax.all_to_all(x_RC, "fsdp", 0, 0, tiled=True) + moved.sum(), None


def compiled(body, devices, rows=ROWS, columns=COLUMNS):
    """The HLO of a scan over `body` on a mesh MESH of devices, each with a share [rows, columns] in float32."""
    mesh = Mesh(np.array(devices).reshape(2, 4), tuple(MESH), axis_types=(AxisType.Auto,) * 2)
    scan = lambda x: jax.lax.scan(body, x, None, length=ROUNDS)[0]
    step = jax.shard_map(
        scan, mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp"), check_vma=False
    )
    x = jax.ShapeDtypeStruct((4 * rows, columns), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    return jax.jit(step).lower(x).compile().as_text()


def test_known_collectives_in_a_scan():
    collectives = read_collectives(compiled(all_kinds, jax.devices()), jax.devices())
    found = {one.kind: (one.size, one.times, one.axes(MESH), one.sent) for one in collectives}
    share, fsdp = 4.0 * ROWS * COLUMNS, ("fsdp",)
    assert found == {
        "all-reduce": (share, ROUNDS, ("replica",), ROUNDS * share),  # 2 (1 - 1/2)
        "all-gather": (4 * share, ROUNDS, fsdp, ROUNDS * 3 * share),
        "reduce-scatter": (4 * share, ROUNDS, ("replica", "fsdp"), ROUNDS * 3.5 * share),
        "all-to-all": (share, ROUNDS, fsdp, ROUNDS * 0.75 * share),
        "collective-permute": (share / 2, ROUNDS, fsdp, ROUNDS * share / 2),
    }


# As libtpu writes it: a loop whose counter goes up by 2 (it is unrolled), an all-gather in the fusions that start and
# carry it (in that loop), and a reduce-scatter that is a fusion of an all-reduce and a slice.
TPU = """HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0.1: bf16[1,64]) -> (bf16[1,64], bf16[16,64]) {
  %param_0.1 = bf16[1,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.1), channel_id=7, replica_groups=GROUPS, dimensions={0}, use_global_device_ids=true
}

%async_collective_fusion.2 (param_0.2: bf16[1,64]) -> bf16[16,64] {
  %param_0.2 = bf16[1,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[16,64]{1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=7, replica_groups=GROUPS, dimensions={0}, use_global_device_ids=true
}

%all-reduce-scatter.3 (param_0.3: f32[16,64]) -> f32[1,64] {
  %param_0.3 = f32[16,64]{1,0:T(8,128)} parameter(0)
  %all-reduce.3 = f32[16,64]{1,0:T(8,128)} all-reduce(%param_0.3), channel_id=8, replica_groups=GROUPS, use_global_device_ids=true, to_apply=%add
  ROOT %dynamic-slice.3 = f32[1,64]{1,0:T(8,128)} dynamic-slice(%all-reduce.3), dynamic_slice_sizes={1,64}
}

%body (wide.param.1: (u32[], bf16[1,64])) -> (u32[], bf16[1,64]) {
  %wide.param.1 = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter.1 = u32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  %copy.1 = u32[]{:T(128)} copy(%counter.1)
  %two = u32[]{:T(128)} constant(2)
  %add.1 = u32[]{:T(128)} add(%copy.1, %two)
  %part.1 = bf16[1,64]{1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.1), index=1
  %carry = bf16[16,64]{1,0:T(8,128)(2,1)} fusion(%part.1), kind=kOutput, calls=%async_collective_fusion.2
  %permute.1 = (bf16[1,64]{1,0:T(8,128)(2,1)}, bf16[1,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%part.1), channel_id=9, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %permute.2 = bf16[1,64]{1,0:T(8,128)(2,1)} collective-permute-done(%permute.1)
  ROOT %tuple.1 = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) tuple(%add.1, %permute.2)
}

%condition (wide.param.2: (u32[], bf16[1,64])) -> pred[] {
  %bound = u32[]{:T(128)} constant(BOUND)
  %wide.param.2 = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter.2 = u32[]{:T(128)} get-tuple-element(%wide.param.2), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%counter.2, %bound), direction=LT
}

ENTRY %main (x: bf16[1,64], g: f32[16,64]) -> bf16[1,64] {
  %x = bf16[1,64]{1,0:T(8,128)(2,1)} parameter(0)
  %g = f32[16,64]{1,0:T(8,128)} parameter(1)
  %zero = u32[]{:T(128)} constant(0)
  %async-collective-start = (bf16[1,64]{1,0}, bf16[16,64]{1,0}) fusion(%x), kind=kCustom, calls=%fused_computation.1
  %scatter = f32[1,64]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3
  %state = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) tuple(%zero, %x)
  %while.1 = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) while(%state), condition=%condition, body=%body
  ROOT %out = bf16[1,64]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


def program(groups: str = "{{0,1,2,3}}", bound: int = 7) -> str:
    return TPU.replace("GROUPS", groups).replace("BOUND", str(bound))


def test_collectives_of_a_tpu_program():
    found = {one.kind: (one.size, one.times, one.groups.tolist()) for one in read_collectives(program(), DEVICES[:4])}
    assert found == {
        "all-gather": (2.0 * 16 * 64, 1, [[0, 1, 2, 3]]),
        "reduce-scatter": (4.0 * 16 * 64, 1, [[0, 1, 2, 3]]),
        "collective-permute": (2.0 * 64, 4, [[0, 1], [1, 2], [2, 3], [3, 0]]),  # 0, 2, 4 and 6 are below 7
    }


@pytest.mark.parametrize(
    ("spelling", "groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]], ("fsdp",)),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]], ("fsdp",)),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]], ("replica",)),
        ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]], ("fsdp",)),
        ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]], ("replica",)),
        ("mesh['a'=2,'b'=4] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]], ("replica", "fsdp")),
        ("mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]], ("fsdp",)),
        ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]], ("replica",)),
        ("mesh['a'=8] {'a':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]], ("fsdp",)),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]], ("replica", "fsdp")),
    ],
)
def test_groups_in_every_spelling(spelling, groups, axes):
    found = next(one for one in read_collectives(program(spelling), DEVICES) if one.kind == "all-gather")
    assert found.groups.tolist() == groups
    assert found.axes(MESH) == axes


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="cannot read the groups of a collective"):
        read_collectives(program("everyone"), DEVICES)
    with pytest.raises(ValueError, match=r"cannot read how often the loop while\.1 runs"):
        read_collectives(program().replace("direction=LT", "direction=NE"), DEVICES[:4])
    with pytest.raises(ValueError, match=r"cannot read how often the loop while\.1 runs"):
        read_collectives(program().replace("add(%copy.1, %two)", "multiply(%copy.1, %two)"), DEVICES[:4])


def test_a_collective_among_one_device_is_none():
    assert {one.kind for one in read_collectives(program("{{0},{1},{2},{3}}"), DEVICES[:4])} == {"collective-permute"}


def test_bytes_that_are_sent():
    assert sent_bytes("all-reduce", 8.0, 4) == 2 * sent_bytes("all-gather", 8.0, 4) == 12.0
    permutation = Collective("collective-permute", 8.0, 3, np.array([[0, 1], [1, 0]]))
    assert permutation.sent == 24.0


# --------------------------------------------------------------------------------------------------- several slices

# As libtpu writes it, shortened: the program of one of two slices of 4 chips. In its loop a reduce-scatter within the
# slice and what is left of an all-reduce over all 8 chips; behind it one transfer more, and one that goes to the host.
SLICE = """HloModule jit_step, is_scheduled=true, num_partitions=4, frontend_attributes={arg_layout_modes="default"}

%body (param.1: (s32[], f32[128,256])) -> (s32[], f32[128,256]) {
  %param.1 = (s32[]{:T(128)}, f32[128,256]{1,0:T(8,128)}) parameter(0)
  %part = f32[128,256]{1,0:T(8,128)} get-tuple-element(%param.1), index=1
  %after-all.1 = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.141_0"}
  %scatter = f32[32,256]{1,0:T(8,128)} reduce-scatter(%part), channel_id=1, replica_groups={{0,1},{2,3}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
  %share = f32[32,2,128]{2,1,0:T(8,128)} bitcast(%scatter)
  %send.1 = (f32[32,2,128]{2,1,0:T(8,128)}, u32[], token[]) send(%share, %after-all.1), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.141_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (f32[32,2,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all.1), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.141_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[128,256]{1,0:T(8,128)}) tuple(%count, %part)
}

%condition (param.2: (s32[], f32[128,256])) -> pred[] {
  ROOT %more = pred[] constant(true)
}

ENTRY %main (x: bf16[64,256]) -> (f32[128,256], bf16[128,256]) {
  %x = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %while.1 = (s32[]{:T(128)}, f32[128,256]{1,0:T(8,128)}) while(%state), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %send.2 = (bf16[64,256]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %after-all.2), channel_id=6, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-gather.2_0",_xla_megascale_target=TARGET,_xla_megascale_transfer_type="KIND"}
  %send.3 = (f32[64]{0:T(128)}, u32[], token[]) send(%told, %after-all.3), channel_id=7, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_pjrt",_xla_host_transfer_rendezvous="callback_0"}
}
"""  # noqa: E501
PAIRS = [[0, 4], [1, 5], [3, 7], [2, 6]]


def sliced(target='"{1,2}x{0:3}"', kind="ALL_GATHER"):
    return SLICE.replace("TARGET", target).replace("KIND", kind)


def test_what_slices_exchange_is_counted_as_often_as_it_is_sent():
    scatter, reduced, gathered = read_collectives(sliced(), SLICED)
    assert (scatter.kind, scatter.network, scatter.times) == ("reduce-scatter", "ici", 3)
    assert scatter.groups.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]  # of both slices
    share, own = 4.0 * 32 * 256, 2.0 * 64 * 256
    assert (reduced.kind, reduced.network, reduced.size, reduced.times) == ("all-reduce", "dcn", share, 3)
    assert (gathered.kind, gathered.network, gathered.size, gathered.times) == ("all-gather", "dcn", 2 * own, 1)
    assert reduced.groups.tolist() == gathered.groups.tolist() == PAIRS
    assert reduced.axes(MESH) == ("replica",) and reduced.sent == 3 * share and gathered.sent == own


@pytest.mark.parametrize(
    ("spelling", "kind", "groups"),
    [
        ('"{2,1}x{0:1,3}"', "all-reduce", [[4, 0], [5, 1], [6, 2]]),
        ("{{100000,200003},{100001,200002}}", "reduce-scatter", [[0, 6], [1, 7]]),
        ("{{100002->200000},{200000->100002}}", "collective-permute", [[3, 4], [4, 3]]),
        ("{{100000,100001,100002,100003,200000,200001,200002,200003}}", "all-to-all", [[0, 1, 3, 2, 4, 5, 7, 6]]),
    ],
)
def test_partners_between_slices_in_every_spelling(spelling, kind, groups):
    transfer = {"collective-permute": "ONE_TO_ONE"}.get(kind, kind.replace("-", "_").upper())
    *_, one = read_collectives(sliced(spelling, transfer), SLICED)
    assert (one.kind, one.network, one.groups.tolist(), one.size) == (kind, "dcn", groups, 2.0 * 64 * 256)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("everyone", "ALL_REDUCE"),
        ('"{1,2}x{0:3}"', "BROADCAST"),
        ('"{1,2}x{0:4}"', "ALL_REDUCE"),
        ("{{100000,200000},{100001}}", "ALL_REDUCE"),
    ],
)
def test_a_transfer_that_cannot_be_read_is_an_error(target, kind):
    with pytest.raises(ValueError, match=r"cannot read a transfer between slices: send\.2"):
        read_collectives(sliced(target, kind), SLICED)


def test_a_program_of_neither_all_devices_nor_a_slice_is_an_error():
    with pytest.raises(ValueError, match="a program for 4 devices is none of one slice"):
        read_collectives(sliced(), [Device(i, i // 3) for i in range(8)])


def between_slices(x_RC, _):
    """One of each kind, over an axis that crosses the slices or over all devices."""
    x_RC = jax.lax.psum(x_RC, "replica")
    whole = jax.lax.all_gather(x_RC, tuple(MESH), tiled=True)
    part = jax.lax.psum_scatter(whole, tuple(MESH), tiled=True)
    moved = jax.lax.ppermute(part, "replica", [(0, 1), (1, 0)])
    return jax.lax.all_to_all(x_RC, "replica", 0, 0, tiled=True) + moved, None


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'vjepa_jax[tpu]'"
)
def test_known_collectives_between_two_slices():
    devices = sorted(Topology("v5e:2x2", slices=2).devices(), key=lambda device: device.id)
    rows, columns = 512, 256  # whole tiles: nothing is padded
    found = read_collectives(compiled(between_slices, devices, rows, columns), devices)
    share = 4.0 * rows * columns
    assert all(one.times == ROUNDS for one in found)
    between = {one.kind: (one.axes(MESH), one.sent) for one in found if one.network == "dcn"}
    assert between == {
        "all-reduce": (("replica",), ROUNDS * share),
        "all-gather": (("replica",), ROUNDS * share),  # of 8 shares its own goes to the other slice,
        "reduce-scatter": (("replica",), ROUNDS * share),  # and of 8 a quarter is reduced, by halves
        "all-to-all": (("replica",), ROUNDS * share / 2),
        "collective-permute": (("replica",), ROUNDS * share),
    }
    assert {one.axes(MESH) for one in found if one.network == "ici"} == {("fsdp",)}
