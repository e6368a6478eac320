"""Official attentive probes, both ways bit for bit. Their logits: tests/models/test_probe.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import vjepa_jax
from vjepa_jax import cli
from vjepa_jax.convert import ConvertError, formats, ours, probes, torch_file
from vjepa_jax.convert.tensors import read_tensors
from vjepa_jax.convert.weights import Hints
from vjepa_jax.models.probe import AttentiveClassifier, MultiTaskClassifier

from .conftest import arrays, part


@pytest.fixture(scope="module")
def state():
    return part(arrays("vjepa2_tiny.npz"), "probe/")


def with_heads(state, heads):
    """The probe with one query and one linear head for each name and number of classes, in this order."""
    rng = np.random.default_rng(0)
    state = {name: array for name, array in state.items() if not name.startswith("linear.")}
    dim = state["pooler.query_tokens"].shape[-1]
    state["pooler.query_tokens"] = rng.normal(size=(1, len(heads), dim)).astype(np.float32)
    for name, classes in heads.items():
        state[f"{name}.weight"] = rng.normal(size=(classes, dim)).astype(np.float32)
        state[f"{name}.bias"] = rng.normal(size=classes).astype(np.float32)
    return state


EK100 = {"verb_classifier": 4, "noun_classifier": 5, "action_classifier": 6}  # the official names


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
        ("pooler.query_tokens", None, "tensor pooler.query_tokens is missing: this is not an attentive classifier"),
        (
            "pooler.query_tokens",
            np.zeros((1, 3, 32), np.float32),
            r"queries: 3, linear heads: 1 \(linear\): a probe has",
        ),
        ("pooler.query_tokens", np.zeros(32, np.float32), r"is \[32\] and must be \[1, queries, channels\]"),
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


@pytest.mark.parametrize(
    ("heads", "order"),  # as they lie in the file, and the one that the queries belong to
    [
        (EK100, (0, 1, 2)),
        ({"linear_Action": 6, "linear_noun": 5, "linear_VERB": 4}, (2, 1, 0)),
        ({"classifiers.0": 4, "classifiers.1": 3, "classifiers.2": 9, "classifiers.3": 2}, (0, 1, 2, 3)),
        ({"heads.noun": 3, "heads.verb": 9}, (1, 0)),
        ({"action_classifier": 6}, (0,)),  # the official probe of a data set without verbs and nouns
    ],
)
def test_several_heads_round_trip_bitwise(state, tmp_path, heads, order):
    state = with_heads(state, heads)
    formats.write(tmp_path / "ours", formats.read(file_of(tmp_path / "a.pt", state)), "ours")
    read = formats.read(tmp_path / "ours")
    assert read.probe.model == MultiTaskClassifier(tuple(list(heads.items())[i] for i in order), 16, depth=3)
    formats.write(tmp_path / "b.pt", read, "official")
    (written,) = torch_file.read(tmp_path / "b.pt")["classifiers"]
    assert written.keys() == {f"module.{name}" for name in state}
    for name, array in state.items():
        np.testing.assert_array_equal(written[f"module.{name}"], array, err_msg=name)
    formats.write(tmp_path / "again", formats.read(tmp_path / "b.pt"), "ours")
    for file in (ours.PROBE_CONFIG, ours.PROBE_PARAMS):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "ours" / file).read_bytes()


def test_heads_keep_their_names_in_folders_of_ours(state, tmp_path):
    formats.write(tmp_path / "a", formats.read(file_of(tmp_path / "a.pt", with_heads(state, EK100))), "ours")
    assert json.loads((tmp_path / "a" / ours.PROBE_CONFIG).read_text())["tasks"] == [
        list(task) for task in EK100.items()
    ]
    tensors = read_tensors(tmp_path / "a" / ours.PROBE_PARAMS)
    assert tensors["verb_classifier.kernel"].shape == (32, 4) and tensors["pooler.query_tokens"].shape == (3, 32)
    (tmp_path / "a" / ours.PROBE_CONFIG).write_text(
        '{"tasks": ["verb"], "num_heads": 16, "depth": 3, "mlp_ratio": 4, "eps": 1e-5}'
    )
    with pytest.raises(ConvertError, match=r"classifier\.json: tasks must list \[name, number of classes\]"):
        formats.read(tmp_path / "a")


@pytest.mark.parametrize(
    ("heads", "changed", "message"),
    [
        (
            EK100,
            {"noun_classifier.weight": None},
            r"queries: 3, linear heads: 2 \(verb_classifier, action_classifier\)",
        ),
        (EK100, {"pooler.query_tokens": np.zeros((1, 2, 32), np.float32)}, "queries: 2, linear heads: 3"),
        (EK100, {"verb_classifier.bias": None}, r"tensor verb_classifier.bias is missing \(1 such\)"),
        (EK100, {"verb_classifier.bias": np.zeros(3, np.float32)}, r"verb_classifier.bias is \[3\] .* has \[4\]"),
        (EK100, {"noun_classifier.weight": np.zeros((5, 31), np.float32)}, r"is \[5, 31\] and .* has \[5, 32\]"),
        (EK100, {"type_embed": np.zeros(32, np.float32)}, "tensor type_embed has no place in this model"),
        (EK100, {"head.mlp.fc1.weight": np.zeros((8, 32), np.float32)}, "tensor head.mlp.fc1.weight has no place"),
        (
            {"verb": 4, "noun": 5, "other": 6},
            {},
            "heads verb, noun, other do not tell whose the queries are: name them",
        ),
        ({"verb_a": 4, "verb_b": 5}, {}, "heads verb_a, verb_b do not tell"),
        ({"verb_noun": 4, "action": 5}, {}, "heads verb_noun, action do not tell"),
        ({"heads.0": 4, "heads_0": 5}, {}, "heads heads.0, heads_0 differ in a dot only: rename one"),
    ],
)
def test_several_heads_that_do_not_fit_are_named(state, tmp_path, heads, changed, message):
    changed = {name: array for name, array in (with_heads(state, heads) | changed).items() if array is not None}
    with pytest.raises(ConvertError, match=message):
        formats.read(file_of(tmp_path / "a.pt", changed))


def test_other_orders_of_queries_are_not_written_as_official(state, tmp_path):
    weights = formats.read(file_of(tmp_path / "a.pt", with_heads(state, EK100)))
    model = weights.probe.model.clone(tasks=weights.probe.model.tasks[::-1])
    weights = dataclasses.replace(weights, probe=dataclasses.replace(weights.probe, model=model))
    with pytest.raises(
        ConvertError, match="are for verb, noun, action, these for action_classifier, noun_classifier, v"
    ):
        formats.write(tmp_path / "b.pt", weights, "official")
    formats.write(tmp_path / "ours", weights, "ours")
    assert formats.read(tmp_path / "ours").probe.model == model


def test_an_encoder_with_an_anticipation_probe(state, hf_classifier_folder, tmp_path, capsys):
    with pytest.raises(ConvertError, match=r"ek100\.pt holds a probe and no encoder"):
        vjepa_jax.load(file_of(tmp_path / "ek100.pt", with_heads(state, EK100)))
    wide = with_heads(probes.to_official(formats.read(hf_classifier_folder).probe), EK100)
    argv = ["convert", hf_classifier_folder, tmp_path / "both.pt", "--probe", file_of(tmp_path / "wide.pt", wide)]
    assert cli.main(list(map(str, argv))) == 0
    assert capsys.readouterr().out.endswith(
        "heads of the probe in the order of its queries: verb_classifier (4 classes), noun_classifier (5 classes), "
        "action_classifier (6 classes)\n"
    )
    loaded = [vjepa_jax.load(path).params for path in (tmp_path / "both.pt", hf_classifier_folder)]
    jax.tree.map(np.testing.assert_array_equal, *loaded)
    both = formats.read(tmp_path / "both.pt")
    assert both.probe.model == MultiTaskClassifier(tuple(EK100.items()), 16, depth=3)
    with pytest.raises(ConvertError, match="no probe with the heads verb_classifier, noun_classifier, action_class"):
        formats.write(tmp_path / "hf", both, "hf")
