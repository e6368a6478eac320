"""Topologies that are not here, and what is said where they cannot be had."""

import importlib.util
import types

import jax
import pytest

from vjepa_jax.config import ConfigError
from vjepa_jax.parallel import chips
from vjepa_jax.parallel.chips import GIB
from vjepa_jax.parallel.compile import Topology, compile_program, memory_parts, needed_bytes

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


def test_a_topology_counts_its_chips():
    assert Topology("v5p:4x4x4").num_devices == 64
    assert Topology("v6e:16x16", slices=2).num_devices == 512
    assert Topology("v5e:1x1").chip.hbm == 16 * GIB


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5litepod-16", "must be CHIP:SHAPE such as v5e:4x4"),
        ("v5e:4", "must be CHIP:SHAPE such as v5e:4x4"),
        ("v5:4x4", "did you mean 'v5p'|did you mean 'v5e'"),
        ("h100:4x4", "with a chip of v4, v5e, v5p, v6e"),
    ],
)
def test_a_topology_that_is_none_is_one_line(name, message):
    with pytest.raises(ConfigError, match=message):
        Topology(name)


def test_slices_are_counted_from_one():
    with pytest.raises(ConfigError, match="--slices 0 must be at least 1"):
        Topology("v5e:4x4", 0)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs libtpu .*: pip install 'vjepa_jax\[tpu\]'"):
        Topology("v5e:4x4").devices()


@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed: pip install 'vjepa_jax[tpu]'")
def test_devices_of_topologies():
    devices = Topology("v5e:2x4", slices=2).devices()
    assert len(devices) == 16 and {device.slice_index for device in devices} == {0, 1}
    assert chips.peak_flops(devices[0].device_kind) == Topology("v5e:2x4").chip.flops
    assert len(Topology("v5e:1x1").devices()) == 1
    assert len(Topology("v4:2x2x2").devices()) == 8
    with pytest.raises(ConfigError, match="--topology v5e:3x5 is none that libtpu knows"):
        Topology("v5e:3x5").devices()


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 215.87G of 15.75G hbm. Exceeded hbm capacity by 200.12G.", 215.87),
        ("RESOURCE_EXHAUSTED: ... Used 512.00M of 128.00M hbm.", 0.5),
        ("... required for HLO temporaries (205.71G) exceeds available HBM (15.75G).", 205.71),
        ("RESOURCE_EXHAUSTED: of something else", 0.0),
    ],
)
def test_what_a_program_would_need(message, gib):
    assert needed_bytes(message) == pytest.approx(gib * GIB)


def test_memory_of_a_program_without_what_it_donates():
    x = jax.ShapeDtypeStruct((1024,), "float32")
    outcome = compile_program(jax.jit(lambda x, y: (x + y, x * y), donate_argnums=0).lower(x, x))
    assert outcome.memory["arguments"] == 8192
    assert 4096 <= outcome.memory["results"] < 4096 + 64  # and the table of the two results
    assert outcome.memory["total"] == sum(size for part, size in outcome.memory.items() if part != "total")
    assert "ENTRY" in outcome.hlo and outcome.error == "" and outcome.seconds > 0


def test_what_libtpu_counts_as_temporary_is_not_added_up():
    """Sizes of ViT-L with 128 clips on 16 chips of v5e, in MiB: it fits into 15.75 GiB."""
    sizes = {"argument": 448, "output": 424, "alias": 424, "temp": 18177, "generated_code": 62}
    stats = types.SimpleNamespace(peak_memory_in_bytes=13483, **{f"{k}_size_in_bytes": v for k, v in sizes.items()})
    compiled = types.SimpleNamespace(memory_analysis=lambda: stats)
    assert memory_parts(compiled) == {"arguments": 448, "results": 0, "temporary": 18177, "program": 62}
    assert memory_parts(compiled, tpu=True) == {"arguments": 448, "results": 0, "temporary": 13035, "program": 62}


def test_a_program_that_does_not_fit_is_an_outcome_and_another_error_is_not():
    def fails(message):
        def compile():
            raise jax.errors.JaxRuntimeError(message)

        return types.SimpleNamespace(compile=compile)

    refusal = "RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm"
    outcome = compile_program(fails(f"{refusal}\nmore"))
    assert (outcome.needed, outcome.memory, outcome.error) == (20 * GIB, {}, refusal)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_program(fails("INTERNAL: a bug"))


def test_the_names_of_chips():
    with pytest.raises(ConfigError, match=r"--chip v5x is not one of .*; did you mean"):
        chips.chip("v5x")
    assert chips.chip("h100").flops == chips.peak_flops("NVIDIA H100 80GB HBM3")
    kinds = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
    assert {name: chips.peak_flops(kind) for name, kind in kinds.items()} == {
        name: chip.flops for name, chip in chips.TPUS.items()
    }
