"""Collectives read from compiled programs: known ones of 8 CPU devices, and what TPU programs make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from vjepa_jax.parallel.collectives import Collective, read_collectives, sent_bytes

MESH = {"replica": 2, "fsdp": 4}
ROUNDS, ROWS, COLUMNS = 5, 16, 16  # of the scan; of a device's share


def all_kinds(x_RC, _):
    x_RC = jax.lax.psum(x_RC, "replica")
    whole = jax.lax.all_gather(x_RC, "fsdp", tiled=True)
    part = jax.lax.psum_scatter(whole, ("replica", "fsdp"), tiled=True)
    moved = jax.lax.ppermute(part, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
    return jax.lax.all_to_all(x_RC, "fsdp", 0, 0, tiled=True) + moved.sum(), None


def test_known_collectives_in_a_scan():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), tuple(MESH), axis_types=(AxisType.Auto,) * 2)
    scan = lambda x: jax.lax.scan(all_kinds, x, None, length=ROUNDS)[0]
    step = jax.shard_map(
        scan, mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp"), check_vma=False
    )
    hlo = jax.jit(step).lower(jax.ShapeDtypeStruct((4 * ROWS, COLUMNS), jnp.float32)).compile().as_text()
    found = {one.kind: (one.size, one.times, one.axes(MESH), one.sent) for one in read_collectives(hlo, 8)}
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
    found = {one.kind: (one.size, one.times, one.groups.tolist()) for one in read_collectives(program(), 4)}
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
    found = next(one for one in read_collectives(program(spelling), 8) if one.kind == "all-gather")
    assert found.groups.tolist() == groups
    assert found.axes(MESH) == axes


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="cannot read the groups of a collective"):
        read_collectives(program("everyone"), 8)
    with pytest.raises(ValueError, match=r"cannot read how often the loop while\.1 runs"):
        read_collectives(program().replace("direction=LT", "direction=NE"), 4)
    with pytest.raises(ValueError, match=r"cannot read how often the loop while\.1 runs"):
        read_collectives(program().replace("add(%copy.1, %two)", "multiply(%copy.1, %two)"), 4)


def test_a_collective_among_one_device_is_none():
    assert {one.kind for one in read_collectives(program("{{0},{1}}"), 2)} == {"collective-permute"}


def test_bytes_that_are_sent():
    assert sent_bytes("all-reduce", 8.0, 4) == 2 * sent_bytes("all-gather", 8.0, 4) == 12.0
    permutation = Collective("collective-permute", 8.0, 3, np.array([[0, 1], [1, 0]]))
    assert permutation.sent == 24.0
