"""Meshes and shardings."""

import dataclasses
import re
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vjepa_jax import config as config_lib
from vjepa_jax.config import ConfigError, MeshConfig
from vjepa_jax.objectives.vjepa2 import VJEPA2
from vjepa_jax.parallel import partitioning
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.state import abstract_state


def test_minus_one_takes_what_is_left():
    mesh = partitioning.make_mesh(MeshConfig(replica=2, fsdp=-1))
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 4, "context": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=3), "do not multiply to 8 devices"),
        (MeshConfig(replica=3), "do not multiply to 8 devices"),
        (MeshConfig(replica=-1), "at most one axis may be -1"),
        (MeshConfig(fsdp=0), "all others must be at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(config, message):
    with pytest.raises(ConfigError, match=message):
        partitioning.make_mesh(config)


def test_a_batch_that_does_not_divide_is_one_line():
    run = config_lib.from_config_dict({"steps": 1, "batch_size": 12, "data": {"path": "v"}})
    mesh = partitioning.make_mesh(MeshConfig())
    with pytest.raises(ConfigError, match=r"batch_size = 12 is not divisible by .* = 8: use a multiple of 8"):
        partitioning.check_batch(run, mesh)
    run = dataclasses.replace(run, batch_size=24, optim=dataclasses.replace(run.optim, accumulate=2))
    with pytest.raises(ConfigError, match=r"batch_size / optim.accumulate = 12 .* use a multiple of 16"):
        partitioning.check_batch(run, mesh)
    partitioning.check_batch(dataclasses.replace(run, batch_size=32), mesh)


def check(sizes, budgets=None, **changes):
    """check_mesh of a ViT-g on 16 frames of 256 px for 64 devices, with groups of 512 + 128 and 1024 + 1472 tokens."""
    raw = {"steps": 1, "batch_size": 64, "data": {"path": "v"}, "model": {"variant": "vit_giant_xformers"}}
    run = config_lib.from_config_dict(raw | changes)
    budgets = {"": [(512, 128), (1024, 1472)]} if budgets is None else budgets
    partitioning.check_mesh(run, partitioning.abstract_mesh(MeshConfig(**sizes), 64), budgets)


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        (
            {"tensor": 4},
            {},
            "mesh.tensor=4 does not divide 22 heads of the encoder: use mesh.tensor=1 or 2 and more of the other axes",
        ),
        (
            {"tensor": 8},
            {"model": {"variant": "vit_large"}},
            "mesh.tensor=8 does not divide 12 heads of the predictor: use mesh.tensor=1 or 2 or 4 and more of the",
        ),
        (
            {"tensor": 2},
            {"model": {"variant": "vit_large", "mlp_ratio": 0.501, "predictor": {"num_heads": 16}}},
            "mesh.tensor=2 does not divide 513 MLP channels of the encoder: use mesh.tensor=1 and more",
        ),
        (
            {"tensor": 4},
            {"model": {"variant": "vit_large"}, "teacher": {"model": {"variant": "vit_giant_xformers"}}},
            "mesh.tensor=4 does not divide 22 heads of the teacher's encoder: use mesh.tensor=1 or 2 and more",
        ),
        (
            {"context": 16},
            {"budgets": {"": [(512, 128), (1016, 1472)]}},
            "mesh.context=16 does not divide 1016 context tokens of mask 1: use mesh.context=1 or 2 or 4 or 8 or "
            "masks.groups with budgets that divide",
        ),
        (
            {"context": 2},
            {"budgets": {"": [(512, 127)]}},
            "mesh.context=2 does not divide 127 target tokens of mask 0: use mesh.context=1 or masks.groups",
        ),
        (
            {"context": 32},
            {"data": {"path": "v", "num_frames": 8, "resolution": 224}, "budgets": {"": [(512, 128)]}},
            "mesh.context=32 does not divide 784 tokens of a clip: use mesh.context=1 or 2 or 4 or 8 or 16 or masks",
        ),
        (
            {"context": 8},
            {"model": {"variant": "vit_large", "registers": 4}},
            "mesh.context=8 does not divide 4 CLS and register tokens of the encoder: use mesh.context=1 or 2 or 4 or",
        ),
        (
            {"context": 8},
            {
                "model": {"variant": "vit_large", "image_tokenizer": True},
                "images": {"batch_size": 64, "data": {"path": "v", "num_frames": 1, "resolution": 224}},
                "budgets": {"": [(512, 128)], "images": [(64, 128)]},
            },
            "mesh.context=8 does not divide 196 tokens of a clip of images: use mesh.context=1 or 2 or 4 or masks",
        ),
        ({"fsdp": 64}, {"batch_size": 32}, "batch_size = 32 is not divisible by mesh.replica * mesh.fsdp = 64"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_one_line(sizes, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(sizes, **changes)


@pytest.mark.parametrize("sizes", [{}, {"tensor": 2}, {"context": 64, "tensor": 1}, {"context": 8, "tensor": 2}])
def test_a_mesh_that_divides_the_model_passes(sizes):
    check(sizes)


def slices(*counts):
    """Stand-ins for the devices of TPU slices of so many devices each."""
    return [
        types.SimpleNamespace(id=i, slice_index=index, platform="cpu", device_kind="cpu")
        for i, index in enumerate(index for index, count in enumerate(counts, start=3) for _ in range(count))
    ]


@pytest.mark.parametrize(
    ("sizes", "axes"),
    [
        ((2, 4, 1, 1), {"replica": 2}),
        ((4, 1, 2, 1), {"replica": 2}),
        ((1, 4, 1, 2), {"fsdp": 2}),
        ((2, 2, 2, 1), {"replica": 2, "fsdp": 2}),
    ],
)
def test_slices_lie_along_replica_then_fsdp(sizes, axes):
    """Neighbours along context and tensor, and within the fast part of the others, are of one slice."""
    slow = [axes.get(axis, 1) for axis in partitioning.AXES]
    count = int(np.prod(slow))
    devices = slices(*[8 // count] * count)
    np.random.default_rng(0).shuffle(devices)
    array = partitioning.arrange(sizes, devices)
    assert array.shape == sizes and {d.id for d in array.flat} == set(range(8))
    index = np.vectorize(lambda device: device.slice_index)(array)
    fast = [n // parts for n, parts in zip(sizes, slow, strict=True)]
    expected = np.arange(count).reshape(slow)
    for axis, n in enumerate(fast):
        expected = expected.repeat(n, axis)
    np.testing.assert_array_equal(index, expected + 3)


@pytest.mark.parametrize(
    ("sizes", "counts", "message"),
    [
        (
            (1, 1, 8, 1),
            (4, 4),
            "mesh.replica=1, mesh.fsdp=1 cannot be divided among 2 slices of 4 devices: set mesh.repl",
        ),
        ((2, 1, 1, 4), (2, 2, 2, 2), "mesh.replica=2, mesh.fsdp=1 cannot be divided among 4 slices of 2 devices"),
        ((1, 8, 1, 1), (6, 2), "the slices have [2, 6] devices: use slices of one size"),
    ],
)
def test_slices_that_do_not_fit_are_one_line(sizes, counts, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        partitioning.arrange(sizes, slices(*counts))


def test_the_gate_of_a_swiglu_is_cut_as_its_twin():
    raw = {"steps": 1, "batch_size": 8, "data": {"path": "v"}, "model": {"variant": "vit_micro", "mlp": "swiglu"}}
    mesh = partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))
    params = jax.eval_shape(lambda: VJEPA2(config_lib.from_config_dict(raw)).init(jax.random.key(0))[0])
    blocks = partitioning.state_shardings(params, mesh)["encoder"]["blocks"]
    specs = {name: blocks[name]["kernel"].spec for name in ("fc1", "fc2", "fc3")}
    assert specs == {
        "fc1": P(None, "fsdp", "tensor"),
        "fc2": P(None, "fsdp", "tensor"),
        "fc3": P(None, "tensor", "fsdp"),
    }


def test_every_array_of_a_state_has_a_rule_and_kernels_are_cut():
    run = config_lib.from_config_dict({"steps": 1, "batch_size": 8, "data": {"path": "v"}})
    mesh = partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))
    abstract = abstract_state(VJEPA2(run), make_optimizer(run))
    shardings = partitioning.state_shardings(abstract, mesh)
    encoder = shardings["params"]["encoder"]["blocks"]
    assert encoder["qkv"]["kernel"].spec == P(None, "fsdp", None, "tensor", None)
    assert encoder["fc2"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert encoder["norm1"]["scale"].spec == P()
    whole = [
        leaf.shape
        for leaf, s in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True)
        if s.is_fully_replicated and leaf.size > 50_000
    ]
    assert whole == []
    # target and moments lie where their parameters lie
    specs = lambda tree: [s.spec for s in jax.tree.leaves(tree)]
    assert specs(shardings["aux"]["target"]) == specs(shardings["params"]["encoder"])
    with pytest.raises(KeyError, match="no rule in LOGICAL_AXES for array params/new/table"):
        partitioning.spec_of("params/new/table", (3, 3), mesh)
