"""Frozen probes of several encoders: every probe, label budget and seed on the same videos, as rows of a table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vjepa_jax.config import ConfigError, EvalConfig
from vjepa_jax.config_build import hint
from vjepa_jax.evals.attentive import AttentiveConfig, train_attentive
from vjepa_jax.evals.features import Encode, Features, balanced_subset, extract_all, held_out
from vjepa_jax.evals.knn import train_knn
from vjepa_jax.evals.linear import train_linear
from vjepa_jax.evals.scores import markdown

Row = dict[str, Any]
Batches = Iterable[dict[str, np.ndarray]]

# Probe names of EvalConfig.probes and what each reads. "time": means per time step, concatenated.
POOLING = {
    "linear": "mean",
    "linear_time": "time",
    "knn": "mean",
    "knn_time": "time",
    "knn_centred": "mean",
    "attentive": "tokens",
}


def probe_rows(
    encoders: Mapping[str, Encode | Sequence[Encode]],
    train_batches_fn: Callable[[], Batches],
    test_batches_fn: Callable[[], Batches],
    cfg: EvalConfig,
    *,
    attentive: AttentiveConfig | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Accuracy of every encoder under every probe and label budget, over `cfg.seeds` seeds.

    Seeds vary the labelled subset, the part of it that hyper-parameters are chosen on and the initial attentive probe;
    with several functions for a name (random-init encoders), also the encoder: seed s takes function s modulo their
    number. Encoders are compared on the same subsets. Test videos choose nothing, except in rows "best on test".
    Features of all encoders are held in memory; without an attentive probe only their means over space.

    Args:
      encoders: name to a function of uint8 video (evals.features.Encode), or several.
      train_batches_fn, test_batches_fn: start a pass over the labelled videos (data_pipelines.pipeline.eval_batches).
      attentive: size and training of the attentive probe.
      on_row: called with every row when it is done.

    Returns:
      Rows with "encoder", "probe", "pooling", "num_labels", "accuracy_mean" (percent), "accuracy_std" (over seeds, one
      degree of freedom less; 0 for one seed), "seeds", "chance" (percent), "num_test", "selected" (how the setting was
      chosen), "settings" and "correct" (the chosen setting and the exact number of right test videos, per seed).

    Raises:
      ConfigError: an unknown probe, no or unlabelled videos, or a label budget that cannot be met.
    """
    _check(cfg)
    attentive = attentive or AttentiveConfig()
    functions = {name: list(f)[: cfg.seeds] if isinstance(f, Sequence) else [f] for name, f in encoders.items()}
    train, test = _extract(functions, train_batches_fn, cfg), _extract(functions, test_batches_fn, cfg)
    first = next(iter(functions))
    labels, test_labels = train[first][0].labels, test[first][0].labels
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    chance = 100.0 / len(np.unique(labels))

    rows = []
    for size in cfg.num_labels or (len(labels),):
        splits = [_split(labels, size, seed) for seed in range(cfg.seeds)]
        for probe in cfg.probes:
            for name in functions:
                pairs = [_views(probe, *both) for both in zip(train[name], test[name], strict=True)]
                runs = [
                    _run(probe, *pairs[seed % len(pairs)], labels, test_labels, *split, num_classes, seed, attentive)
                    for seed, split in enumerate(splits)
                ]
                for outcomes in zip(*runs, strict=True):
                    rows.append(_row(name, probe, size, outcomes, len(test_labels), chance))
                    if on_row:
                        on_row(rows[-1])
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Rows as an aligned Markdown table, which reads as well on a terminal."""
    head = ["encoder", "probe", "features", "labels", "accuracy %", "seeds", "chance %", "test videos", "chosen by"]
    cells = [
        [
            row["encoder"],
            row["probe"],
            row["pooling"],
            str(row["num_labels"]),
            f"{row['accuracy_mean']:.1f} ± {row['accuracy_std']:.1f}",
            str(row["seeds"]),
            f"{row['chance']:.1f}",
            str(row["num_test"]),
            f"{row['selected']}: {', '.join(dict.fromkeys(row['settings']))}",
        ]
        for row in rows
    ]
    return markdown([head, *cells], numeric={3, 4, 5, 6, 7})


def _check(cfg: EvalConfig) -> None:
    for probe in cfg.probes:
        if probe not in POOLING:
            raise ConfigError(f"eval.probes: {probe!r} is not one of {', '.join(POOLING)}{hint(probe, POOLING)}")
    if cfg.seeds < 1:
        raise ConfigError(f"eval.seeds={cfg.seeds} must be at least 1")


def _extract(
    functions: dict[str, list[Encode]], batches_fn: Callable[[], Batches], cfg: EvalConfig
) -> dict[str, list[Features]]:
    """Features by encoder name, every video decoded once."""
    flat = [function for group in functions.values() for function in group]
    features = iter(extract_all(flat, batches_fn(), keep_space="attentive" in cfg.probes))
    return {name: [next(features) for _ in group] for name, group in functions.items()}


def _views(probe: str, train: Features, test: Features) -> tuple[np.ndarray, np.ndarray]:
    """What a probe reads of the train and test videos.

    Tokens are standardised with the training videos' statistics per channel, as linear probes do inside: an encoder
    trained for a short time has most of its length in a common mean, which an attentive probe takes long to see past
    (measured on the demo, 400 labels: 78 to 94 %). The published protocol leaves them as they are.
    """
    if POOLING[probe] != "tokens":
        return train.pooled(POOLING[probe]), test.pooled(POOLING[probe])
    tokens = train.sequences()
    mean, std = tokens.mean((0, 1), dtype=np.float32), tokens.std((0, 1), dtype=np.float32)
    scale = 1.0 / np.maximum(std, 1e-6)
    return tuple(((f.sequences() - mean) * scale).astype(np.float32) for f in (train, test))


def _split(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the labelled subset, and which of them are held out to choose by; the same for all encoders."""
    rng = np.random.default_rng([size, seed])
    subset = balanced_subset(labels, size, rng) if size != len(labels) else np.arange(size)
    return subset, held_out(labels[subset], rng)


def _run(
    probe: str,
    x_train: np.ndarray,
    x_test: np.ndarray,
    labels: np.ndarray,
    test_labels: np.ndarray,
    subset: np.ndarray,
    chooses: np.ndarray,
    num_classes: int,
    seed: int,
    attentive: AttentiveConfig,
) -> list[tuple[str, str, int]]:
    """One probe, one seed: how its setting was chosen, the setting, and how many test videos it gets right."""
    kind = probe.split("_")[0]
    if kind == "linear":
        x, pad_to = x_train[subset], len(x_train)
        linear = train_linear(x, labels[subset], chooses, num_classes, pad_to=pad_to)
        return [("held-out 20 %", f"l2={linear.l2:g}", int((linear.predict(x_test) == test_labels).sum()))]
    if kind == "knn":
        centred, x, pad_to = probe == "knn_centred", x_train[subset], len(x_train)
        knn = train_knn(x, labels[subset], num_classes, center=centred, pad_to=pad_to)
        return [("leave-one-out", f"k={knn.k}", int((knn.predict(x_test) == test_labels).sum()))]
    trained = train_attentive(x_train, labels, subset, chooses, num_classes, attentive, seed)
    correct = (trained.predict(x_test) == test_labels).sum(1)
    return [
        (how, "lr={:g} wd={:g}".format(*attentive.grid[head]), int(correct[head]))
        for how, head in (("held-out 20 %", trained.chosen), ("best on test", int(correct.argmax())))
    ]


def _row(
    name: str, probe: str, size: int, outcomes: Sequence[tuple[str, str, int]], num_test: int, chance: float
) -> Row:
    correct = [outcome[2] for outcome in outcomes]
    accuracy = 100.0 * np.asarray(correct, np.float64) / num_test
    return {
        "encoder": name,
        "probe": probe,
        "pooling": POOLING[probe],
        "num_labels": size,
        "accuracy_mean": float(accuracy.mean()),
        "accuracy_std": float(accuracy.std(ddof=1)) if len(correct) > 1 else 0.0,
        "seeds": len(correct),
        "chance": chance,
        "num_test": num_test,
        "selected": outcomes[0][0],
        "settings": [outcome[1] for outcome in outcomes],
        "correct": correct,
    }
