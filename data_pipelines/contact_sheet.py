"""`vjepa data show`: a picture of what training sees: clips as the pipeline gives them, their masks drawn on them.

Legend: T, H, W frames and pixels of a clip; h, w those of a picture.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines import pipeline
from data_pipelines.sources import DataError, Source, open_sources
from vjepa_jax.config import DataConfig, RunConfig

# Draws the masks of a clip: (video uint8[T, H, W, 3], a mask dict for each group, (T', H', W')) -> uint8[h, w, 3], a
# row of frames, then one for each group (vjepa_jax.training.pictures.mask_picture).
DrawMasks = Callable[[np.ndarray, Sequence[Mapping[str, np.ndarray]], tuple[int, int, int]], np.ndarray]

_PAGE, _INK, _FAINT = (250, 250, 248), (28, 28, 30), (110, 110, 115)
_MARGIN, _GUTTER, _LINE = 24, 132, 20  # pixels; the gutter holds the names of rows
_TITLE_SIZE, _TEXT_SIZE = 20, 13
_LEGEND = "context: as it is      target: blue      neither (beyond the token budgets): grey"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vjepa data show`."""
    parser.description = "Draw a contact sheet: clips as training gets them, with the masks of every group on them."
    parser.epilog = "example: vjepa data show videos sheet.png --config experiments/pretrain/folder.py --clips 6"
    parser.add_argument("src", metavar="SRC", help="folder, manifest, index or folder of shards")
    parser.add_argument("dst", metavar="OUT.png", help="picture to write")
    parser.add_argument(
        "--config", metavar="FILE[:ARG]", help="whose clips and masks; default: those of V-JEPA 2; keys are overridden "
        "with --config.KEY=VALUE"
    )  # fmt: skip
    parser.add_argument("--clips", type=int, default=4, metavar="N", help="clips of the first batch (4)")


def default_run(path: str) -> RunConfig:
    """The clips and masks of V-JEPA 2: 16 frames of 256 pixels at 4 frames a second."""
    return RunConfig(steps=1, batch_size=1, data=DataConfig(path=path))


def write_sheet(run: RunConfig, clips: int, dst: str, draw_masks: DrawMasks) -> None:
    """Writes the first `clips` clips that training with `run` would get, as a PNG file.

    Raises:
      DataError: the sources cannot be read, or the file cannot be written.
    """
    if clips < 1:
        raise DataError(f"data show: --clips {clips} must be at least 1")
    run = dataclasses.replace(run, batch_size=clips, data=dataclasses.replace(run.data, num_workers=0, buffer_size=1))
    sources = open_sources(run.data)
    with contextlib.closing(pipeline.train_batches(run)) as batches:
        batch = next(batches)
    page = draw_sheet(batch, sources, run, draw_masks)
    try:
        Image.fromarray(page).save(dst, "PNG", optimize=True)
    except OSError as error:
        raise DataError(f"{dst} cannot be written: {error}") from error


def draw_sheet(batch: pipeline.Batch, sources: Sequence[Source], run: RunConfig, draw_masks: DrawMasks) -> np.ndarray:
    """uint8[h, w, 3]: every clip of a batch with its title and a row for each mask group."""
    clips = []
    for i, video in enumerate(batch["video"]):
        masks = [{key: ids[i] for key, ids in group.items()} for group in batch["masks"]]
        clips.append((_title(sources, int(batch["index"][i])), draw_masks(video, masks, run.grid), masks))
    width = 2 * _MARGIN + _GUTTER + max(picture.shape[1] for _, picture, _ in clips)
    height = 3 * _MARGIN + 2 * _LINE + sum(picture.shape[0] + _LINE + _MARGIN for _, picture, _ in clips)
    page = Image.new("RGB", (width, height), _PAGE)
    draw = ImageDraw.Draw(page)
    title, text = (ImageFont.load_default(size) for size in (_TITLE_SIZE, _TEXT_SIZE))
    draw.text((_MARGIN, _MARGIN), _heading(sources, run), _INK, title)
    draw.text((_MARGIN, _MARGIN + _LINE + 8), _LEGEND, _FAINT, text)
    top = 2 * _MARGIN + 2 * _LINE
    for name, picture, masks in clips:
        draw.text((_MARGIN, top), _fitted(name, width - 2 * _MARGIN, text), _INK, text)
        top += _LINE
        page.paste(Image.fromarray(picture), (_MARGIN + _GUTTER, top))
        row_height = picture.shape[0] / (1 + len(masks))
        for row, lines in enumerate(["clip", *(_describe(run, g, group) for g, group in enumerate(masks))]):
            draw.text((_MARGIN, top + row * row_height), lines, _FAINT, text)
        top += picture.shape[0] + _MARGIN
    return np.asarray(page)


def _heading(sources: Sequence[Source], run: RunConfig) -> str:
    data, (height, width) = run.data, run.data.size
    spacing = f"every {data.frame_step}. frame" if data.frame_step else f"{data.fps:g} frames a second"
    videos = " + ".join(f"{len(source):,}" for source in sources)
    return f"{videos} videos    clips of {data.num_frames} x {height} x {width}, {spacing}"


def _title(sources: Sequence[Source], index: int) -> str:
    """Name, class, group and split of a video by its row in the concatenated sources, as far as they are known."""
    number = 0
    while index >= len(sources[number]):
        index -= len(sources[number])
        number += 1
    source = sources[number]
    row, label = source.row(index), source.label(index)
    known: dict[str, Any] = {
        "class": source.class_names[label] if 0 <= label < len(source.class_names) else label if label >= 0 else "",
        "group": row.group,
        "split": row.split,
        "size": f"{row.height} x {row.width}" if row.height else "",
        "seconds": f"{row.duration:.1f}" if row.duration else "",
    }
    return "    ".join(
        [row.id or source.name(index), *(f"{key}: {value}" for key, value in known.items() if value != "")]
    )


def _describe(run: RunConfig, number: int, group: Mapping[str, np.ndarray]) -> str:
    tokens = [int(group.get(f"{name}_valid", np.ones_like(group[name])).sum()) for name in ("context", "target")]
    return f"{number + 1} {run.masks.groups[number].kind}\n{tokens[0]:,} context\n{tokens[1]:,} target"


def _fitted(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """A line cut at its start to a width in pixels: the end of a path tells more."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"...{line}") > width:
        line = line[1:]
    return f"...{line}"
