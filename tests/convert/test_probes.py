"""Official attentive probes, both ways bit for bit. Their logits: tests/models/test_probe.py."""

import dataclasses

import numpy as np
import pytest

from vjepa_jax.convert import ConvertError, formats, probes, torch_file
from vjepa_jax.convert.weights import Hints
from vjepa_jax.models.probe import AttentiveClassifier

from .conftest import arrays, part


@pytest.fixture(scope="module")
def state():
    return part(arrays("vjepa2_tiny.npz"), "probe/")


def file_of(path, *states):
    content = [{f"module.{name}": array for name, array in state.items()} for state in states]
    torch_file.write(path, {"classifiers": content, "opt": None, "epoch": 20})
    return path


def test_round_trip_is_bitwise(state, tmp_path):
    read = formats.read(file_of(tmp_path / "a.pt", state))
    assert read.run is None and read.params == {}
    assert read.probe.model == AttentiveClassifier(num_classes=7, num_heads=16, depth=3)
    formats.write(tmp_path / "ours", read, "ours")
    formats.write(tmp_path / "b.pt", formats.read(tmp_path / "ours"), "official")
    (written,) = torch_file.read(tmp_path / "b.pt")["classifiers"]
    assert written.keys() == {f"module.{name}" for name in state}
    for name, array in state.items():
        np.testing.assert_array_equal(written[f"module.{name}"], array, err_msg=name)


def test_a_probe_without_self_attention(state, tmp_path):
    shallow = {name: array for name, array in state.items() if not name.startswith("pooler.blocks.")}
    probe = formats.read(file_of(tmp_path / "a.pt", shallow)).probe
    assert probe.model.depth == 1 and "blocks" not in probe.params["pooler"]
    assert probes.to_official(probe).keys() == shallow.keys()


def test_one_of_several_is_chosen(state, tmp_path):
    other = {**state, "linear.bias": state["linear.bias"] + 1}
    path = file_of(tmp_path / "a.pt", state, other)
    with pytest.raises(ConvertError, match="holds 2 probes: choose one with --classifier 0 to 1"):
        formats.read(path)
    with pytest.raises(ConvertError, match="--classifier 2 is not there: the file holds 2 probes"):
        formats.read(path, Hints(classifier=2))
    chosen = formats.read(path, Hints(classifier=1)).probe
    np.testing.assert_array_equal(chosen.params["linear"]["bias"], other["linear.bias"])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("linear.weight", None, "tensor linear.weight is missing: this is not an attentive classifier"),
        ("pooler.query_tokens", np.zeros((1, 3, 32), np.float32), r"a probe with 3 queries \(action anticipation\)"),
        ("pooler.blocks.0.norm1.bias", None, r"tensor pooler.blocks.0.norm1.bias is missing \(1 such\)"),
        ("pooler.blocks.0.norm1.bias", np.zeros(3, np.float32), r"norm1.bias is \[3\] and this model has \[32\]"),
        ("verb.weight", np.zeros(3, np.float32), "tensor verb.weight has no place in this model"),
    ],
)
def test_what_does_not_fit_is_named(state, tmp_path, name, array, message):
    changed = {key: value for key, value in {**state, name: array}.items() if value is not None}
    with pytest.raises(ConvertError, match=message):
        formats.read(file_of(tmp_path / "a.pt", changed))


def test_uneven_heads_and_unpublished_probes_are_refused(state, tmp_path):
    with pytest.raises(ConvertError, match="a probe of width 32 does not divide over 3 heads"):
        probes.from_official(state, num_heads=3)
    weights = formats.read(file_of(tmp_path / "a.pt", state))
    weights = dataclasses.replace(weights, probe=probes.from_official(state, num_heads=2))
    with pytest.raises(ConvertError, match="official probes have 16 heads and eps 1e-05, this one 2 and 1e-05"):
        formats.write(tmp_path / "b.pt", weights, "official")
