"""Hugging Face folders from the fixtures' arrays, as save_pretrained lays them out."""

import json
import pathlib

import numpy as np
import pytest

from vjepa_jax.convert.tensors import INDEX, write_tensors

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"


def arrays(name):
    with np.load(FIXTURES / name) as data:
        return {key: data[key] for key in data.files}


def part(fixture, prefix):
    return {k[len(prefix) :]: v for k, v in fixture.items() if k.startswith(prefix)}


def write_hf_folder(folder, config, state, shards=1):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_tensors(folder / "model.safetensors", state, {"format": "pt"})
        return folder
    names, places = sorted(state), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        places |= dict.fromkeys(names[i::shards], file)
        write_tensors(folder / file, {name: state[name] for name in names[i::shards]}, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.fixture(scope="session")
def hf_model():
    """Arrays, config and state dict of transformers' VJEPA2Model (fixtures/hf_vjepa2_tiny.npz)."""
    data = arrays("hf_vjepa2_tiny.npz")
    return data, json.loads(str(data["config"])), part(data, "param/")


@pytest.fixture(scope="session")
def hf_classifier():
    """The same of VJEPA2ForVideoClassification (fixtures/hf_vjepa2_cls_tiny.npz)."""
    data = arrays("hf_vjepa2_cls_tiny.npz")
    return data, json.loads(str(data["config"])), part(data, "param/")


@pytest.fixture(scope="session")
def hf_model_folder(hf_model, tmp_path_factory):
    _, config, state = hf_model
    return write_hf_folder(tmp_path_factory.mktemp("hf") / "model", config, state)


@pytest.fixture(scope="session")
def hf_classifier_folder(hf_classifier, tmp_path_factory):
    _, config, state = hf_classifier
    return write_hf_folder(tmp_path_factory.mktemp("hf") / "classifier", config, state)
