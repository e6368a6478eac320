"""Config files with command-line overrides."""

import dataclasses

import pytest

from vjepa_jax import config_file
from vjepa_jax.config import ConfigError, flatten, from_config_dict

FILE = """
from ml_collections import ConfigDict

def get_config(arg="5"):
    return ConfigDict({"steps": int(arg), "batch_size": 4, "data": {"path": "here"}, "optim": {"lr": 1e-3}})
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(FILE)
    return str(path)


def test_file_argument_and_overrides(file):
    assert config_file.load(file).steps == 5
    assert config_file.load(file + ":7").steps == 7
    run = config_file.load(
        file,
        [
            "--config.data.path=a,b",
            "--config.data.weights=(0.3,0.7)",
            "--config.optim.clip_norm=2",
            "--config.optim.lr=1",
            "--config.mesh.fsdp=4",
            "--config.data.frame_step=2",
            "--config.model.variant=vit_base",
        ],
    )
    assert run.data.paths == ("a", "b") and run.data.weights == (0.3, 0.7) and run.data.frame_step == 2
    assert run.optim.clip_norm == 2.0 and run.optim.lr == 1.0
    assert run.mesh.fsdp == 4 and run.model.variant == "vit_base"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optm.lr=1", "unknown config key optm.lr; did you mean 'optim.lr'?"),
        ("--config.optim.rl=1", "did you mean 'optim.lr'?"),
        ("--config.data.crop_size=384", "unknown config key data.crop_size; vjepa2's is 'data.resolution' here"),
        ("--config.steps=1.5", "--config.steps=1.5"),
        ("--config.steps=many", "many"),
    ],
)
def test_a_wrong_override_is_one_line(file, override, message):
    with pytest.raises(ConfigError) as caught:
        config_file.load(file, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_files_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="does not exist: the ready ones are in experiments/"):
        config_file.load(str(tmp_path / "none.py"))
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(ConfigError, match=r"does not define get_config\(\)"):
        config_file.load(str(empty))
    typo = tmp_path / "typo.py"
    typo.write_text(FILE.replace('"steps"', '"stpes"'))
    with pytest.raises(ConfigError, match="steps"):
        config_file.load(str(typo))
    typo.write_text(FILE.replace('"path"', '"crop_size": 384, "path"'))
    with pytest.raises(ConfigError) as caught:
        config_file.load(str(typo))
    assert str(caught.value) == f"{typo}: unknown config key data.crop_size; vjepa2's is 'data.resolution' here"


@dataclasses.dataclass(frozen=True)
class Probe:
    """Settings of a protocol, to read groups with."""

    horizons: tuple[int, ...] = (1, 2)
    seeds: int = 3
    scale: float = 1.0
    data: str = ""
    frames: int | None = None


def groups(tmp_path, text, *overrides):
    path = tmp_path / "evals.py"
    path.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({text})\n")
    return config_file.load_groups(str(path), overrides, {"probe": Probe, "other": Probe})


def test_groups_are_read_by_name_with_overrides(tmp_path):
    read = groups(
        tmp_path, {"other": {"seeds": 1}, "probe": {}}, "--config.probe.horizons=(4,)", "--config.other.scale=2"
    )
    assert read == {"other": Probe(seeds=1, scale=2.0), "probe": Probe(horizons=(4,))} and list(read) == [
        "other",
        "probe",
    ]
    assert groups(tmp_path, {"probe": {}}, "--config.probe.frames=8")["probe"].frames == 8


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ({"prob": {}}, (), "unknown protocol 'prob': there is probe, other; did you mean 'probe'?"),
        ({"probe": {"seed": 1}}, (), "seed"),
        ({"probe": {}}, ("--config.probe.seed=1",), "unknown config key probe.seed; did you mean 'probe.seeds'?"),
        ({"probe": {"seeds": "a"}}, (), "probe.seeds='a' must be of type int"),
        ({"probe": 1}, (), "probe must be a group of keys, got 1"),
        ({}, (), "gives no protocol: there is probe, other"),
    ],
)
def test_mistakes_in_groups_are_one_line(tmp_path, text, overrides, message):
    with pytest.raises(ConfigError) as caught:
        groups(tmp_path, text, *overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_name_that_stands_for_one_of_vjepa2_is_a_key():
    known = flatten(dataclasses.asdict(from_config_dict({"steps": 1, "batch_size": 1, "data": {"path": "v"}})))
    assert not set(config_file._VJEPA2.values()) - set(known)
    assert not set(config_file._VJEPA2) & {key.split(".")[-1] for key in known} - {"motion_shift"}
