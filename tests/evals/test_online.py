"""Protocols during training: metrics, the report, budgets, and what goes wrong without ending the run."""

import dataclasses
import json

import pytest

from vjepa_jax import cli, config_file
from vjepa_jax import config as config_lib
from vjepa_jax import train as train_lib
from vjepa_jax.config import ConfigError
from vjepa_jax.config_eval import OnlineConfig
from vjepa_jax.evals import suite, transfer
from vjepa_jax.prepare import prepare
from vjepa_jax.training import metrics as metrics_lib

TINY = {"train": 24, "test": 16, "shifts": ("noise",), "probes": ("knn",), "seeds": 1, "batch_size": 8}
KEY = "eval/transfer/knn,_accuracy_on_the_source"


def run_of(tiny_config, **online):
    log = {"every_steps": 5, "health_every_steps": 100, "images_every_steps": 100, "report": True}
    return config_lib.from_config_dict(tiny_config(eval={"online": online}, log=log))


def test_scores_of_steps_are_in_metrics_and_report(tiny_config, tmp_path):
    run = run_of(tiny_config, transfer={"every_steps": 2, "settings": TINY})
    assert train_lib.train(run, tmp_path, command="vjepa train x") == 0
    records = {r["step"]: r for r in metrics_lib.read_metrics(tmp_path / "metrics.jsonl")}
    assert [step for step, record in records.items() if KEY in record] == [2, 4, 6]
    assert all(0 <= records[step][KEY] <= 100 and records[step]["loss"] > 0 for step in (2, 4, 6))
    assert records[6]["time/evaluation"] > 0 and records[6]["eval/transfer/seconds"] > 0
    written = json.loads((tmp_path / "evals" / "online" / "scores.json").read_text())
    (part,) = written["protocols"]
    assert written["step"] == part["step"] == 6 and {row["encoder"] for row in part["scores"]} == {
        "trained", "single frame", "shuffled frames"
    }  # fmt: skip
    cfg = transfer.Config(**TINY)
    assert part["hash"] == suite.protocol_hash("transfer", cfg) and part["config"] == suite.to_plain(cfg)
    text = (tmp_path / "report.html").read_text()
    assert "Evaluations during training" in text and "transfer: knn, accuracy on the source" in text
    # the config is read back as it was, and goes on where it stopped
    assert config_lib.from_config_dict(json.loads((tmp_path / "config.json").read_text())).eval.online.keys() == {
        "transfer"
    }


def test_controls_are_of_one_set_of_random_inits(tiny_config, tmp_path):
    run = run_of(tiny_config, transfer={"every_steps": 3, "settings": TINY, "controls": True})
    assert train_lib.train(run, tmp_path) == 0
    part = json.loads((tmp_path / "evals" / "online" / "scores.json").read_text())["protocols"][0]
    assert {row["encoder"] for row in part["scores"]} >= {"trained", "random init", "raw pixels"}


def test_what_goes_wrong_in_a_protocol_is_told_and_training_goes_on(tiny_config, tmp_path, capsys):
    run = run_of(
        tiny_config,
        motion={"every_steps": 6, "settings": {"horizons": (5,)}},
        transfer={"every_steps": 6, "settings": TINY, "seconds": 1e-6},
    )
    assert train_lib.train(run, tmp_path) == 0
    told = capsys.readouterr().out
    assert "warning: eval.online.motion at step 6: motion.horizons: 5 must be at least 1 and at most 1" in told
    assert "warning: eval.online.transfer at step 6 was cut off after 0 s with 0 scores: raise eval.online" in told
    assert json.loads((tmp_path / "evals" / "online" / "scores.json").read_text())["protocols"][0]["cut"]


def test_mistakes_are_found_before_training(tiny_config):
    for online, message in (
        ({"transfr": {}}, "eval.online.transfr: unknown protocol: .* did you mean 'transfer'"),
        (
            {"transfer": {"settings": {"trian": 3}}},
            "unknown config key eval.online.transfer.trian; did you mean 'train'",
        ),
        ({"transfer": {"settings": {"train": "a"}}}, "eval.online.transfer.train='a' must be of type int"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(run_of(tiny_config, **online))
    for online, message in (
        ({"transfer": {"every": 3}}, "unknown config key eval.online.transfer.every; did you mean 'every_steps'"),
        ({"transfer": {"every_steps": 0}}, "eval.online.transfer: every_steps=0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_of(tiny_config, **online)


FILE = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict({"steps": 4, "batch_size": 4, "data": {"path": "here"}})
    settings = {"train": 64, "shifts": ("noise",)}
    config.eval = ConfigDict({"online": {"transfer": {"every_steps": 2, "settings": settings}}})
    return config
"""


def test_a_config_file_names_them_and_overrides_change_them(tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(FILE)
    online = config_file.load(str(path), ["--config.eval.online.transfer.seconds=9"]).eval.online["transfer"]
    assert online == OnlineConfig(2, 9.0, False, {"train": 64, "shifts": ("noise",)})
    changed = config_file.load(str(path), ["--config.eval.online.transfer.settings.train=80"]).eval.online["transfer"]
    assert changed == dataclasses.replace(online, seconds=120.0, settings={"train": 80, "shifts": ("noise",)})
    command = [
        "train",
        "--config",
        str(path),
        "--workdir",
        str(tmp_path / "run"),
        "--config.eval.online.transfr.seconds=1",
    ]
    assert cli.main(command) == cli.USAGE_ERROR
    assert "unknown config key eval.online.transfr.seconds" in capsys.readouterr().err
