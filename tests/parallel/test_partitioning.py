"""Meshes and shardings."""

import dataclasses

import jax
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
