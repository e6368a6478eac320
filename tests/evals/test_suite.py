"""Protocols by name: what a run of them leaves, its hash and its budget, and mistakes in one line."""

import dataclasses
import json

import numpy as np
import pytest

from vjepa_jax import cli, config_file
from vjepa_jax import config as config_lib
from vjepa_jax.config import ConfigError
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, suite, surprise
from vjepa_jax.evals.scores import score
from vjepa_jax.training.checkpoint import Checkpoints

SMALL = surprise.Config(contexts=(2,), fixed_context=2, pairs=6, frame_step=1, batch_size=8, seeds=1)
TEXT = """
from ml_collections import ConfigDict

def get_config():
    small = {"contexts": (2,), "fixed_context": 2, "pairs": 6, "frame_step": 1, "batch_size": 8, "seeds": 1}
    return ConfigDict({"surprise": small})
"""


WORLD = ("consistency", "context", "motion", "surprise", "transfer")


@pytest.fixture
def folder(tiny_config, tmp_path):
    """A run's folder with one checkpoint, of step 5; clips of 8 frames."""
    data = {"num_frames": 8, "resolution": 32}
    run = config_lib.from_config_dict(tiny_config(data=data, model={"patch_size": 8}))
    params = Encoder.random(run, seed=1).params
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(config_lib.to_dict(run)))
    (workdir / "metrics.jsonl").write_text('{"step": 5, "loss": 0.5}\n')
    checkpoints = Checkpoints(workdir)
    state = {"params": params, "aux": {"target": params["encoder"]}}
    assert checkpoints.save(5, state) is None and checkpoints.wait() is None
    checkpoints.close()
    return workdir


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(TEXT)
    return str(path)


def told(capsys, *argv):
    try:
        code = cli.main(["eval", *argv])
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err.strip().splitlines()


def test_the_command_leaves_scores_and_shows_them_in_the_report(folder, file, capsys):
    argv = ["--config", file, "--checkpoint", str(folder), "--config.surprise.pairs=12"]
    assert cli.main(["eval", *argv]) == 0
    printed = capsys.readouterr().out
    record = json.loads((folder / "evals" / "small" / "scores.json").read_text())
    assert record["step"] == 5 and record["version"] == "0.1.0" and record["name"] == "small"
    assert record["command"].startswith("vjepa eval --config ") and "pairs=12" in record["command"]
    (part,) = record["protocols"]
    cfg = dataclasses.replace(SMALL, pairs=12)
    assert part["config"] == suite.to_plain(cfg) and part["hash"] == suite.protocol_hash("surprise", cfg)
    assert part["protocol"] == "surprise" and part["seeds"] == 1 and not part["cut"]
    assert {row["encoder"] for row in part["scores"]} >= {"trained", "random init", "copy of the last step"}
    text = (folder / "evals" / "small" / "scores.md").read_text()
    for shown in (printed, text, (folder / "report.html").read_text()):
        assert "relative accuracy, best context" in shown and "world, violations" in shown
    assert record["command"] in text and part["hash"] in text


def test_the_world_suite_runs_whole(repo, folder, capsys):
    """All protocols of the ready file on a small number of videos: rows with every control, and a report."""
    small = ["surprise.pairs=6", "motion.videos=64", "consistency.videos=8", "context.frames=(8,)", "context.train=48"]
    small += ["context.test=48", "transfer.train=48", "transfer.test=24", 'transfer.shifts=("noise",)']
    small += [f"{name}.seeds=1" for name in suite.PROTOCOLS if name in WORLD]
    file = str(repo / "experiments" / "evals" / "world_suite.py")
    assert cli.main(["eval", "--config", file, "--checkpoint", str(folder), *(f"--config.{key}" for key in small)]) == 0
    record = json.loads((folder / "evals" / "world_suite" / "scores.json").read_text())
    assert [part["protocol"] for part in record["protocols"]] == list(WORLD)
    for part in record["protocols"]:
        assert part["scores"] and not part["cut"], part["protocol"]
        assert {"trained", "random init"} <= {row["encoder"] for row in part["scores"]}
        assert all(np.isfinite(row["value"]) for row in part["scores"])
    text = (folder / "report.html").read_text()
    assert all(f"world, {what}" in text for what in ("consistency", "context", "motion", "violations", "transfer"))


def test_the_hash_changes_with_settings_and_code(monkeypatch):
    first = suite.protocol_hash("surprise", SMALL)
    assert len(first) == 12 and suite.protocol_hash("surprise", dataclasses.replace(SMALL)) == first
    assert suite.protocol_hash("surprise", dataclasses.replace(SMALL, stride=1)) != first
    monkeypatch.setattr(suite.inspect, "getsource", lambda module: "other code")
    assert suite.protocol_hash("surprise", SMALL) != first


@pytest.mark.parametrize(
    "module, changed",
    [
        ("vos", [True, True, False, False]),  # the settings of both are declared there
        ("propagation", [True, True, False, False]),  # taken by vos, not by the protocols themselves
        ("heads", [False, False, False, True]),
        ("scores", [False, False, False, False]),  # how numbers are written
    ],
)
def test_the_hash_changes_with_code_that_protocols_share(monkeypatch, module, changed):
    names = ("davis", "youtube_vos", "surprise", "classification")
    known = [suite.protocol_hash(name, suite.CONFIGS[name]()) for name in names]
    text = suite.inspect.getsource
    other = lambda of: text(of) + ("# changed" if of.__name__ == f"vjepa_jax.evals.{module}" else "")
    monkeypatch.setattr(suite.inspect, "getsource", other)
    after = [suite.protocol_hash(name, suite.CONFIGS[name]()) for name in names]
    assert [a != b for a, b in zip(known, after, strict=True)] == changed


def test_mistakes_are_one_line(folder, file, tmp_path, capsys):
    for argv, message in (
        (("--config", file, "--checkpoint", str(tmp_path / "nowhere")), "is no folder to write scores to"),
        (("--config", file, "--checkpoint", str(tmp_path)), "is not a run folder"),
        (("--config", file, "--checkpoint", str(folder), "--step", "7"), "no checkpoint of step 7"),
        (("--config", file, "--checkpoint", str(folder), "--config.surprise.piars=1"), "did you mean 'surprise.pairs'"),
        (("--config", file, "--checkpoint", str(folder), "--config.suprise.pairs=1"), "did you mean 'surprise.pairs'"),
        (("--config", file, "--checkpoint", str(folder), "--config.surprise.pairs=a"), "surprise.pairs=a"),
        (("--config", file, "--checkpoint", str(folder), "--config.surprise.contexts=(8,)"), "fewer than the 8"),
    ):
        code, lines = told(capsys, *argv)
        assert code == cli.USAGE_ERROR and len(lines) == 1 and message in lines[0], lines
    other = tmp_path / "other.py"
    other.write_text(TEXT.replace('{"surprise"', '{"suprise"'))
    code, lines = told(capsys, "--config", str(other), "--checkpoint", str(folder))
    assert (
        code == cli.USAGE_ERROR and "unknown protocol 'suprise'" in lines[0] and "did you mean 'surprise'" in lines[0]
    )
    with pytest.raises(ConfigError, match=r"eval.online.suprise: unknown protocol: .*; did you mean 'surprise'\?"):
        suite.settings({"suprise": {}}, "eval.online.")
    with pytest.raises(ConfigError, match=r"unknown config key surprise.pair; did you mean 'pairs'\?"):
        suite.settings({"surprise": {"pair": 3}})


def test_every_protocol_has_typed_settings_with_defaults():
    for name, (config, run) in suite.PROTOCOLS.items():
        assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen and callable(run)
        assert suite.settings({name: {}}) == {name: config()}
        assert config_file._template(config)  # every key can be overridden


class Slow:
    """An encoder that says how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, video):
        self.calls += 1
        return np.zeros(1)


def test_a_protocol_is_cut_off_when_its_time_is_up(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(suite.time, "perf_counter", lambda: float(next(clock)))

    def run(encoders, cfg, on_score):
        for i in range(10):
            encoders["trained"][0](None)
            on_score(score("b", f"m{i}", "trained", [1.0], count=1))

    monkeypatch.setitem(suite.PROTOCOLS, "surprise", (surprise.Config, run))
    slow, seen = Slow(), []
    part = suite.run_protocol("surprise", {controls.TRAINED: [slow]}, SMALL, seen.append, seconds=5)
    # the clock is read at the start and then twice a round: at the call, and at the score
    assert part["cut"] and [row["metric"] for row in part["scores"]] == ["m0", "m1", "m2"] and seen == part["scores"]
    assert slow.calls == 3


@pytest.mark.parametrize("change", ["with_params", "with_model"])
def test_models_made_from_an_encoder_look_at_the_clock_too(monkeypatch, change):
    class Changing(Slow):
        def other(self, what):
            return self

        with_params = with_model = other

    def run(encoders, cfg, on_score):
        other = getattr(encoders["trained"][0], change)(None)
        while True:
            other(None)

    monkeypatch.setitem(suite.PROTOCOLS, "surprise", (surprise.Config, run))
    assert suite.run_protocol("surprise", {controls.TRAINED: [Changing()]}, SMALL, seconds=0.05)["cut"]
