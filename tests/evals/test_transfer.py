"""Retention: by hand, of encoders that must keep all or have nothing to keep, and of a pair of manifests."""

import csv
import dataclasses

import numpy as np
import pytest

from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, transfer, worlds
from vjepa_jax.evals.transfer import Config, retention, world_specs

from .models import Collapsed

SMALL = Config(shifts=("speeds", "texture"), train=160, test=80, batch_size=40, seeds=1)


@pytest.fixture
def run(tiny_config):
    return from_config_dict(tiny_config())


def test_retention_by_hand():
    right = lambda hits: np.arange(100) < hits
    assert retention(right(50), right(75), 0.25) == pytest.approx(0.5)
    assert retention(right(75), right(75), 0.25) == 1.0
    assert retention(right(20), right(75), 0.25) == pytest.approx(-0.1)
    assert retention(right(90), right(30), 0.25) == 0.0  # chance has a standard error of 4.3 points


def test_shifts_change_what_they_say():
    specs = world_specs(worlds.Clip(8, (32, 32), 2, 8))
    source = specs["source"]
    assert set(specs["speeds"].speeds).isdisjoint(source.speeds) and set(specs["shapes"].shapes).isdisjoint(
        source.shapes
    )
    assert specs["texture"].background == "static" and specs["noise"].noise == 3 * source.noise
    for name in transfer.SHIFTS:
        changed = {
            f.name for f in dataclasses.fields(source) if getattr(specs[name], f.name) != getattr(source, f.name)
        }
        assert changed <= {name, "background"} and changed


class Labels:
    """Features that tell the direction of motion in the source world, and nothing in videos with texture."""

    def __init__(self, run, spec, count):
        self.run = run
        self.known = {}
        for seed, specs in ((41, ("source",)), (42, ("source",)), (43, ("speeds", "texture"))):
            for name in specs:
                videos, truths = worlds.render(spec[name], count, seed)
                for video, truth in zip(videos, truths, strict=True):
                    self.known[video.tobytes()] = 0 if name == "texture" else truth.direction

    def __call__(self, video):
        codes = np.array([self.known.get(clip.tobytes(), 0) for clip in np.asarray(video)])
        return np.broadcast_to(np.eye(8, dtype=np.float32)[codes][:, None, None, None], (len(video), 2, 1, 1, 8))


def values(model, cfg=SMALL):
    rows = transfer.run({controls.TRAINED: [model]}, cfg)
    return {(row["encoder"], row["metric"]): row["value"] for row in rows}


def test_what_is_kept_and_what_is_lost(run):
    found = values(Labels(run, world_specs(worlds.clip_of({"trained": [Collapsed(run)]}, "transfer")), 160))
    for probe in ("linear", "knn"):
        assert found["trained", f"{probe}, accuracy on the source"] == 100.0
        assert found["trained", f"{probe}, retention on other speeds"] == 1.0
        assert found["trained", f"{probe}, accuracy on texture"] == 12.5
        assert found["trained", f"{probe}, retention on texture"] == 0.0


def test_a_collapsed_encoder_has_nothing_to_retain(run):
    for (_, metric), value in values(Collapsed(run)).items():
        assert value == (0.0 if "retention" in metric else pytest.approx(12.5)), metric


def test_rows_with_controls_and_seeds(run):
    rows = transfer.run(controls.encoders(Encoder.random(run), 2), dataclasses.replace(SMALL, seeds=2, probes=("knn",)))
    assert {row["encoder"] for row in rows} == {
        "trained",
        "random init",
        "raw pixels",
        "single frame",
        "shuffled frames",
    }
    assert all(row["seeds"] == 2 and row["low"] is not None for row in rows) and len(rows) == 5 * 5


def manifest(tiny_world, path, labels):
    """The tiny world's videos with other labels."""
    with open(tiny_world, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for row in rows:
            writer.writerow([tiny_world.parent / row["path"], labels(int(row["label"])), row["split"]])
    return str(path)


def test_a_pair_of_manifests(run, tiny_world, tmp_path):
    target = manifest(tiny_world, tmp_path / "target.csv", lambda label: label % 4)
    cfg = dataclasses.replace(SMALL, source=str(tiny_world), target=target, probes=("linear",), batch_size=16)
    rows = transfer.run({controls.TRAINED: [Encoder.random(run)]}, cfg)
    assert [row["metric"] for row in rows[:3]] == [
        "linear, accuracy on the source", "linear, accuracy on the target", "linear, retention on the target"
    ]  # fmt: skip
    assert rows[0]["count"] == 16 and rows[0]["chance"] == 12.5 and rows[0]["benchmark"] == "transfer"


def test_mistakes_are_one_line(run, tiny_world, tmp_path):
    named = {controls.TRAINED: [Collapsed(run)]}
    more = manifest(tiny_world, tmp_path / "more.csv", lambda label: label + 5)
    for changes, message in (
        ({"shifts": ("colour",)}, "transfer.shifts: 'colour' is not one of speeds, shapes, texture, noise"),
        ({"probes": ("attentive",)}, "transfer.probes: 'attentive' is not one of linear, linear_time, knn"),
        ({"target": "x.csv"}, "transfer.source is empty"),
        ({"source": str(tiny_world)}, "transfer.target is empty: give a second manifest with the columns path, label"),
        ({"source": str(tiny_world), "target": more}, r"lacks \(first: 8\): keep the videos of shared classes"),
        ({"train": 8}, "transfer.train=8 must be at least"),
    ):
        with pytest.raises(ConfigError, match=message):
            transfer.run(named, dataclasses.replace(SMALL, **changes))
