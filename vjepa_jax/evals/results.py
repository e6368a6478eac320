"""What run folders hold: scores.json of evaluations, probes.json of frozen probes, metrics.jsonl of training.

Reading is tolerant: a file that is damaged or of another shape is one line in `problems`, and the rest is read.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.masking import make_plan
from vjepa_jax import objectives
from vjepa_jax.config import ConfigError, ModelConfig, RunConfig
from vjepa_jax.encoder import CONFIG_FILE, read_config
from vjepa_jax.evals.controls import TRAINED
from vjepa_jax.evals.scores import Score, score
from vjepa_jax.models.variants import predictor_levels
from vjepa_jax.training.checkpoint import CheckpointError
from vjepa_jax.training.metrics import read_metrics

SCORES, PROBES, METRICS = "scores.json", "probes.json", "metrics.jsonl"
TRAINING = "training"  # benchmark of what a run's own log tells
_SIZES = {"vit_micro": "ViT-micro", "vit_tiny": "ViT-Ti", "vit_small": "ViT-S", "vit_base": "ViT-B",
          "vit_large": "ViT-L", "vit_huge": "ViT-H", "vit_giant": "ViT-g", "vit_giant_xformers": "ViT-g",
          "vit_gigantic": "ViT-G", "vit_gigantic_xformers": "ViT-G"}  # fmt: skip
_OBJECTIVES = {"ijepa": "I-JEPA", "distill": "V-JEPA 2.1"}


@dataclasses.dataclass(frozen=True)
class Result:
    """One score and where it comes from.

    Attributes:
      run: path of the folder as it was given; `run_id` is its last part.
      model, size: as published numbers are named; see `name_model`.
      score: a row of evals.scores.
      source: the file in the folder.
      command, version: "" where the file does not say; step: None likewise.
      protocol: hash of the settings it was measured with, "" where the file holds none.
    """

    run: str
    model: str
    size: str
    score: Score
    source: str
    command: str = ""
    step: int | None = None
    version: str = ""
    protocol: str = ""

    @property
    def run_id(self) -> str:
        return Path(self.run).name


def name_model(run: RunConfig) -> tuple[str, str]:
    """Model and size as the published tables call them: ("V-JEPA 2", "ViT-g 384").

    Our own sizes carry their patch where it is not 16: "ViT-micro/8". Other objectives go by their own name.
    """
    model, size = run.model, _size(run.model)
    if run.objective != "vjepa2":
        return _OBJECTIVES.get(run.objective, run.objective), size
    if predictor_levels(model) > 1:
        return "V-JEPA 2.1", f"{size}, scratch" if model.variant == "vit_large" else size
    return "V-JEPA 1" if model.position == "sincos" else "V-JEPA 2", f"{size} 384" if run.data.size[0] == 384 else size


def _size(model: ModelConfig) -> str:
    name = _SIZES.get(model.variant, model.variant)
    changed = any(value is not None for value in (model.embed_dim, model.depth, model.num_heads, model.mlp_ratio))
    return name + (" (changed)" if changed else "") + (f"/{model.patch_size}" if model.patch_size != 16 else "")


def collect(folders: Iterable[str], problems: list[str]) -> list[Result]:
    """All results of run folders. A folder that is no run itself stands for the runs directly in it.

    Raises:
      ConfigError: a folder that is not there, or holds no run.
    """
    results = []
    for folder in folders:
        for run in _runs(Path(folder)):
            results += _of_run(run, problems)
    return results


def _runs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: give run folders, or a folder of run folders")
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))
    if _is_run(folder):
        return [folder]
    if not inside:
        raise ConfigError(
            f"{folder} holds no run: a run folder has {CONFIG_FILE} (vjepa train) or evals/NAME/{SCORES} (vjepa eval)"
        )
    return inside


def _is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or any(path.glob(f"evals/*/{SCORES}")) or (path / PROBES).is_file()


def _of_run(run: Path, problems: list[str]) -> list[Result]:
    config, named = None, ("unknown model", "")
    try:
        config = read_config(run)
        named = name_model(config)
    except (CheckpointError, ConfigError, ValueError, TypeError, OSError) as error:
        problems.append(f"{run}: the model is unknown, {CONFIG_FILE} cannot be read ({_line(error)})")
    results = []
    for path in sorted(run.glob(f"evals/*/{SCORES}")):
        results += _guarded(_of_scores, path, run, named, problems)
    if (run / PROBES).is_file():
        results += _guarded(_of_probes, run / PROBES, run, named, problems)
    if config is not None:
        results += _guarded(lambda *args: _of_training(config, *args), run / METRICS, run, named, problems)
    return results


def _guarded(read: Any, path: Path, run: Path, named: tuple[str, str], problems: list[str]) -> list[Result]:
    """What `read` gives; where the file is not of the expected shape, nothing and a line."""
    try:
        return read(path, run, named, problems)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{path} is left out: it is damaged or of another shape ({_line(error)})")
        return []


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _of_scores(path: Path, run: Path, named: tuple[str, str], problems: list[str]) -> list[Result]:
    """Rows of a scores.json: {"command", "step", "version", ...} with "scores", or with "protocols" that each have a
    "hash" and "scores"."""
    record = json.loads(path.read_text(encoding="utf-8"))
    parts = record["protocols"] if "protocols" in record else [record]
    results = []
    for part in parts:
        protocol = str(part.get("hash") or part.get("protocol") or "")
        for row in part["scores"]:
            if reason := _wrong(row):
                problems.append(f"{path}: a score is left out: {reason}")
                continue
            step = record.get("step")
            results.append(
                Result(
                    *(str(run), *named, row, str(path.relative_to(run)), str(record.get("command") or "")),
                    *(step if isinstance(step, int) else None, str(record.get("version") or ""), protocol),
                )
            )
    return results


def _wrong(row: Any) -> str:
    """Why a row is no score, or ""."""
    if not isinstance(row, Mapping):
        return f"{row!r} is not a group of keys"
    for key, kind in (("benchmark", str), ("metric", str), ("encoder", str), ("value", int | float)):
        if not isinstance(row.get(key), kind):
            return f"its {key} is {row.get(key)!r}"
    return ""


def _of_probes(path: Path, run: Path, named: tuple[str, str], problems: list[str]) -> list[Result]:
    """Rows of evals.frozen as scores of the benchmark "labelled videos": probes.json does not name its data."""
    results = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        accuracies = [100.0 * right / row["num_test"] for right in row["correct"]]
        metric = f"{row['probe']}, {row['num_labels']:,} labels, {row['selected']}"
        converted = score(
            *("labelled videos", metric, row["encoder"], accuracies),
            count=row["num_test"],
            chance=row["chance"],
        )
        results.append(Result(str(run), *named, converted, PROBES))
    return results


def _of_training(config: RunConfig, path: Path, run: Path, named: tuple[str, str], _: list[str]) -> list[Result]:
    """Cost, speed and health of a run, from its config and log: the last value, or the median of rates."""
    flops = sum(objectives.create(config).flops(make_plan(config).budgets).values())
    values = {"GFLOP a training clip": (flops / 1e9, "GFLOP")}
    records = read_metrics(path)
    for key, name, scale, unit in (("clips_per_s", "clips a second", 1.0, ""), ("mfu", "MFU", 100.0, "%")):
        if found := [r[key] for r in records if isinstance(r.get(key), float)][1:]:  # the first holds compilation
            values[name] = (scale * statistics.median(found), unit)
    for key, name in (("rankme", "RankMe"), ("rankme_max", "RankMe, at most"), ("feature_std", "feature std")):
        if found := [r[key] for r in records if isinstance(r.get(key), float)]:
            values[name] = (found[-1], "")
    step = records[-1]["step"] if records else None
    return [
        Result(str(run), *named, score(TRAINING, name, TRAINED, [value], count=1, unit=unit), METRICS, step=step)
        for name, (value, unit) in values.items()
    ]
