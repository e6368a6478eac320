"""`vjepa convert` and `vjepa_jax.load` on every kind of path."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

import vjepa_jax
from vjepa_jax import cli
from vjepa_jax import config as config_lib
from vjepa_jax.convert import ConvertError, formats, ours, probes, torch_file
from vjepa_jax.convert.tensors import read_tensors, write_tensors
from vjepa_jax.convert.weights import Hints

from .conftest import arrays, part, write_hf_folder


def convert(capsys, *argv):
    code = cli.main(["convert", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_format_from_every_other_is_bitwise(hf_model, hf_model_folder, tmp_path, capsys):
    hops = [hf_model_folder, *(tmp_path / name for name in ("ours", "a.pt", "hf", "b.pt", "ours2"))]
    for src, dst in itertools.pairwise(hops):
        code, out, err = convert(capsys, src, dst, *(["--to", "hf"] if dst.name == "hf" else []))
        assert (code, err) == (0, "")
        assert out.endswith("parameters: encoder 483,264, predictor 66,192\n"), out
    assert [formats.kind(path) for path in hops] == ["hf", "ours", "official", "hf", "official", "ours"]
    assert_same(read_tensors(hops[3] / "model.safetensors"), hf_model[2])
    assert_same(read_tensors(hops[1] / "params.safetensors"), read_tensors(hops[5] / "params.safetensors"))
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(vjepa_jax.load(hops[2])(video), vjepa_jax.load(hops[0])(video))


def test_files_of_ours_have_plain_names_and_modes(hf_classifier_folder, tmp_path):
    weights = formats.read(hf_classifier_folder)
    formats.write(tmp_path / "ours", weights, "ours")
    tensors = read_tensors(tmp_path / "ours" / "params.safetensors")
    assert tensors["encoder.blocks.qkv.kernel"].shape == (3, 96, 3, 3, 32)
    assert config_lib.from_config_dict(json.loads((tmp_path / "ours" / "config.json").read_text())) == weights.run
    again = formats.read(tmp_path / "ours")
    assert again.probe.model == weights.probe.model and again.probe.labels == weights.probe.labels
    assert_same(again.probe.params, weights.probe.params)
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "ours").iterdir()}
    assert len(modes) == 4 and len(set(modes.values())) == 1, modes  # who reads the config reads the weights


def test_a_probe_is_added_and_its_eps_changed(hf_classifier_folder, hf_model_folder, tmp_path, capsys):
    probe = formats.read(hf_classifier_folder).probe
    probe = dataclasses.replace(probe, model=probe.model.clone(num_heads=16, eps=1e-5))
    state = {f"module.{name}": array for name, array in probes.to_official(probe).items()}
    torch_file.write(tmp_path / "probe.pt", {"classifiers": [state, state]})
    convert_probe = (hf_model_folder, tmp_path / "both", "--probe", tmp_path / "probe.pt")
    code, _, err = convert(capsys, *convert_probe)
    assert code == cli.USAGE_ERROR and "choose one with --classifier" in err
    code, out, _ = convert(capsys, *convert_probe, "--classifier", 1, "--probe-eps", 1e-6)
    assert code == 0 and "probe" in out
    both = formats.read(tmp_path / "both")
    assert (both.probe.model.eps, both.probe.model.num_heads) == (1e-6, 16)
    assert both.params.keys() == {"encoder", "predictor"}
    narrow = part(arrays("vjepa2_tiny.npz"), "probe/")
    torch_file.write(tmp_path / "narrow.pt", {"classifiers": [narrow]})
    code, _, err = convert(capsys, hf_model_folder, tmp_path / "x", "--probe", tmp_path / "narrow.pt")
    assert code == cli.USAGE_ERROR and "the probe reads tokens of 32 channels and the encoder gives 96" in err
    code, _, err = convert(capsys, hf_model_folder, tmp_path / "x", "--probe", hf_model_folder)
    assert code == cli.USAGE_ERROR and "holds no probe: name one with --probe" in err
    code, _, err = convert(capsys, hf_model_folder, tmp_path / "x", "--probe-eps", 1e-6)
    assert code == cli.USAGE_ERROR and "holds no probe: name one with --probe" in err
    with pytest.raises(ConvertError, match=r"probe\.pt holds a probe and no encoder"):
        vjepa_jax.load(tmp_path / "probe.pt", classifier=0)


def test_hints_of_the_command_reach_the_file(tmp_path, capsys):
    data = arrays("vjepa2_tiny.npz")
    content = {tower: part(data, f"{tower}/") for tower in ("encoder", "target_encoder", "predictor")}
    torch_file.write(tmp_path / "a.pt", content)
    size = ("--heads", 2, "--predictor-heads", 2)
    code, _, err = convert(capsys, tmp_path / "a.pt", tmp_path / "x")
    assert code == cli.USAGE_ERROR and err.count("\n") == 1 and "give --heads" in err
    assert convert(capsys, tmp_path / "a.pt", tmp_path / "b", "--tower", "encoder", *size)[0] == 0
    np.testing.assert_array_equal(
        formats.read(tmp_path / "b").params["encoder"]["norm"]["bias"], data["encoder/norm.bias"]
    )
    assert convert(capsys, tmp_path / "a.pt", tmp_path / "c", "--position", "sincos", *size)[0] == 0
    assert formats.read(tmp_path / "c").run.model.position == "sincos"
    assert convert(capsys, tmp_path / "c", tmp_path / "d.pth.tar")[0] == 0
    assert formats.kind(tmp_path / "d.pth.tar") == "official"


def test_mistakes_are_one_line(hf_model_folder, tmp_path, capsys):
    for argv, message in (
        ((hf_model_folder, tmp_path), "is there already: remove it or name another destination"),
        ((tmp_path / "nothing", tmp_path / "x"), "is not a run folder"),
        ((hf_model_folder, tmp_path / "x", "--step", 3), "is no run folder and has no steps"),
        (
            (hf_model_folder, tmp_path / "x", "--variant", "vit_base"),
            "says itself what model it holds: leave out variant",
        ),
        ((hf_model_folder, tmp_path / "x", "--probe", tmp_path / "y"), "is neither a PyTorch file nor a folder"),
    ):
        code, out, err = convert(capsys, *argv)
        assert code == cli.USAGE_ERROR and out == "" and err.count("\n") == 1 and message in err, err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConvertError, match="there is no format 'onnx': ours, official, hf"):
        formats.write(tmp_path / "x", formats.read(hf_model_folder), "onnx")


def test_a_folder_of_ours_is_checked_against_its_config(hf_model_folder, tmp_path):
    folder = tmp_path / "ours"
    formats.write(folder, formats.read(hf_model_folder), "ours")
    tensors = read_tensors(folder / "params.safetensors")
    for changed, message in (
        ({"encoder.norm.scale": None}, r"tensor encoder.norm.scale is missing \(1 such\)"),
        ({"encoder.norm.extra": np.zeros(1, np.float32)}, "tensor encoder.norm.extra has no place in this model"),
        ({"predictor.norm.scale": np.zeros(3, np.float32)}, r"norm.scale is \[3\] and this model has \[48\]"),
        (
            {name: None for name in tensors if "predictor.blocks" in name},
            r"tensor predictor.blocks.* is missing \(12 such",
        ),
    ):
        state = {name: array for name, array in {**tensors, **changed}.items() if array is not None}
        write_tensors(folder / "params.safetensors", state, {})
        with pytest.raises(ConvertError, match=message):
            vjepa_jax.load(folder)
    (folder / ours.PROBE_CONFIG).write_text('{"num_heads": 2}')
    with pytest.raises(ConvertError, match=r"classifier\.json must have the keys labels, num_classes"):
        formats.read(folder)


def test_a_wrong_dtype_is_refused(hf_model_folder):
    with pytest.raises(config_lib.ConfigError, match=r"model\.dtype='float16' is not one of bfloat16, float32"):
        vjepa_jax.load(hf_model_folder, dtype="float16")


def test_a_file_that_is_none_of_these(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ConvertError, match="does not say what model it holds: name its folder"):
        formats.read(tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_bytes(b"no")
    with pytest.raises(ConvertError, match="is not a zip file of PyTorch"):
        formats.read(tmp_path / "notes.txt", Hints(tower="encoder"))
    other = write_hf_folder(tmp_path / "clip", {"model_type": "clip"}, {"a": np.zeros(1, np.float32)})
    with pytest.raises(ConvertError, match="is a model of type 'clip'"):
        formats.read(other)
