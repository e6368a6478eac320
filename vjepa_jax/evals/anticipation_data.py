"""What anticipation is trained and scored on: EPIC-Kitchens-100, or the embedded world. `cfg`: anticipation.Config."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data_pipelines import epic, world_behaviours
from data_pipelines.world_spec import SHAPES
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import worlds
from vjepa_jax.evals.clips import training_clips

# What the object of the world does next follows from what it does now.
NEXT = {"dash": "orbit", "orbit": "shake", "shake": "still", "still": "dash"}
Batches = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Data:
    """Labels int [n, 3] (verb, noun, action) of training and validation, the number of classes of each, the video that
    each training action is of, int [n], and batches: dicts of "video", "ahead", "index" (-1: nothing) and, but for
    training, "failed"."""

    name: str
    classes: tuple[int, int, int]
    labels: np.ndarray
    groups: np.ndarray
    test_labels: np.ndarray
    training: Callable[[int], Batches]
    rows: Callable[[np.ndarray], Batches]  # some of training, as in validation; "index" counts them
    test: Callable[[], Batches]


def ek100_data(cfg: Any) -> Data:
    """EPIC-Kitchens-100. Classes are those of training, numbered anew; actions of the validation set whose verb and
    noun never meet in training are left out.

    Raises:
      DataError, ConfigError: a wrong layout, or nothing to validate on.
    """
    train, test = (epic.read_actions(cfg.path, part) for part in epic.FILES)
    pairs = sorted({(action.verb, action.noun) for action in train})
    verbs, nouns = (sorted({pair[i] for pair in pairs}) for i in (0, 1))
    known = {(v, n): (verbs.index(v), nouns.index(n), place) for place, (v, n) in enumerate(pairs)}
    test = [action for action in test if (action.verb, action.noun) in known]
    if not test:
        raise ConfigError(f"{cfg.path}: no action of the validation set is one of training")
    labels, test_labels = (np.array([known[a.verb, a.noun] for a in part], np.int32) for part in (train, test))
    videos = {video: i for i, video in enumerate(sorted({action.video for action in train}))}
    seen = functools.partial(epic.Window, cfg.frames, cfg.fps, reading=cfg.reading)
    drawn, fixed = seen(cfg.train_ahead, cfg.train_point), seen((cfg.ahead,) * 2, (cfg.point,) * 2)
    clips = training_clips(cfg, hflip=False)
    options = {"batch_size": cfg.batch_size, "num_workers": cfg.num_workers, "num_threads": cfg.num_threads}
    in_order = lambda some: epic.eval_batches(some, fixed, clips.size, **options)
    training = functools.partial(
        epic.training_batches, train, drawn, clips, batch_size=cfg.batch_size, epochs=cfg.epochs
    )
    return Data(
        name="ek100",
        classes=(len(verbs), len(nouns), len(pairs)),
        labels=labels,
        groups=np.array([videos[action.video] for action in train]),
        test_labels=test_labels,
        training=lambda seed: training(seed=seed),
        rows=lambda rows: in_order([train[row] for row in rows]),
        test=lambda: in_order(test),
    )


def world_data(clip: worlds.Clip, cfg: Any) -> Data:
    """The embedded world: a clip shows what an object does (the next thing it will do, the verb, follows from that by
    NEXT) and its shape (the noun). Motion alone tells the verb: every frame holds the object at a random place."""
    behaviours, spec = tuple(NEXT), worlds.travelling(clip)
    rng = np.random.default_rng(23)
    videos, labels = [], []
    for index in range(sum(cfg.worlds)):
        now = behaviours[rng.integers(len(behaviours))]
        video, shape = world_behaviours.render_behaviours(spec, 23, index, [(now, clip.frames)])
        verb, noun = behaviours.index(NEXT[now]), SHAPES.index(shape)
        videos.append(video)
        labels.append((verb, noun, verb * len(SHAPES) + noun))
    video, label, count = np.stack(videos), np.array(labels, np.int32), cfg.worlds[0]

    def training(seed: int) -> Batches:
        rng = np.random.default_rng([seed, 29])
        order = np.concatenate([rng.permutation(count) for _ in range(cfg.epochs)])
        for rows in order[: len(order) // cfg.batch_size * cfg.batch_size].reshape(-1, cfg.batch_size):
            ahead = rng.uniform(*cfg.train_ahead, len(rows)).astype(np.float32)
            yield {"video": video[rows], "ahead": ahead, "index": rows}

    def in_order(rows: np.ndarray) -> Batches:
        for start in range(0, len(rows), cfg.batch_size):
            at = np.arange(start, start + cfg.batch_size)
            yield {
                "video": video[rows[np.minimum(at, len(rows) - 1)]],
                "ahead": np.full(len(at), cfg.ahead, np.float32),
                "index": np.where(at < len(rows), at, -1),
                "failed": np.zeros(len(at), bool),
            }

    return Data(
        name="world, anticipation",
        classes=(len(behaviours), len(SHAPES), len(behaviours) * len(SHAPES)),
        labels=label[:count],
        groups=np.arange(count),
        test_labels=label[count:],
        training=training,
        rows=in_order,
        test=lambda: in_order(np.arange(count, len(video))),
    )
