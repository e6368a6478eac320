"""The verbs `vjepa data index`, `shard` and `check`: their options, progress and exit codes."""

import argparse
import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from data_pipelines import checks, indexing, shards
from data_pipelines.reencode import Encoding
from data_pipelines.sources import INDEX_SUFFIX, DataError, open_source

_FAILED = 1  # exit code
_PLAIN_SECONDS = 10.0  # between two lines of progress
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SOURCE = "folder, manifest, index, folder of shards or dataset of TFDS"


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vjepa data index`."""
    parser.description = "Look at every video of a source and write an index, which opens at once at any size."
    parser.epilog = "example: vjepa data index videos videos/index.arrow"
    parser.add_argument("src", metavar="SRC", help=_SOURCE)
    parser.add_argument(
        "dst", metavar=f"OUT{INDEX_SUFFIX}", help="index to write; videos below its folder may move with it"
    )
    parser.add_argument("--checksums", action="store_true", help="also read all bytes for their sha256")
    _add_common(parser)


def index(args: argparse.Namespace) -> int:
    """`vjepa data index`; the exit code. Raises DataError."""
    if not args.dst.endswith(INDEX_SUFFIX):
        raise DataError(f"data index: the name of an index ends with {INDEX_SUFFIX}, {args.dst} does not")
    source = open_source(args.src, split=args.split, pictures=args.pictures)
    with progress("looked at", len(source)) as update:
        try:
            broken = indexing.write_index(
                source, args.dst, checksums=args.checksums, workers=args.workers, progress=update
            )
        except OSError as error:
            raise DataError(f"{args.dst} cannot be written ({error}): free space or name another place") from error
    report(args.dst, len(source) - len(broken), broken)
    return 0


def report(written: str, count: int, broken: Sequence[indexing.Broken]) -> None:
    """Says what was written, of how many videos, and names those that had to be left out."""
    for name, reason in broken:
        print(f"{name}: {reason}", file=sys.stderr)
    left_out = f", {len(broken):,} broken ones left out" if broken else ""
    print(f"{written}: {count:,} videos{left_out}", flush=True)


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vjepa data shard`."""
    parser.description = (
        "Write the videos of a source into ArrayRecord shards with an index. Run the same command again to go on after "
        "a stop. Files are kept as they are unless --short-side, --gop or --crf is given."
    )
    parser.epilog = "example: vjepa data shard videos shards --short-side 256 --gop 12"
    parser.add_argument("src", metavar="SRC", help=_SOURCE)
    parser.add_argument("dst", metavar="DST", help="folder to write to")
    parser.add_argument("--short-side", type=int, metavar="PIXELS", help="encode anew, larger videos shrunk to this")
    parser.add_argument("--gop", type=int, metavar="FRAMES", help="encode anew with so many frames to a key frame (12)")
    parser.add_argument("--crf", type=int, help="encode anew with this quality of H.264, 0 to 51 (20)")
    parser.add_argument("--shard-size", default="256MB", metavar="SIZE", help="of the videos in a shard (256MB)")
    parser.add_argument("--beam", action="store_true", help="over a cluster that shares both folders, by Apache Beam")
    parser.add_argument("--beam-options", default="", metavar="OPTIONS", help="of Beam: '--runner=FlinkRunner ...'")
    _add_common(parser)


def shard(args: argparse.Namespace) -> int:
    """`vjepa data shard`; the exit code. Raises DataError."""
    given = {key: getattr(args, key) for key in ("short_side", "gop", "crf") if getattr(args, key) is not None}
    if args.beam:
        from data_pipelines import beam

        write = functools.partial(beam.write_shards, options=args.beam_options)
    elif args.beam_options:
        raise DataError("data shard: --beam-options are for --beam: add it")
    else:
        write = shards.write_shards
    with progress("wrote", None) as update:
        path = write(
            args.src,
            args.dst,
            split=args.split,
            pictures=args.pictures,
            encoding=Encoding(**given) if given else None,
            shard_bytes=_size(args.shard_size),
            workers=args.workers,
            progress=update,
        )
    ledger = os.path.join(os.path.dirname(path), shards.LEDGER)
    left_out = f"; videos that cannot be read are named in {ledger}" if os.path.exists(ledger) else ""
    print(f"{path}: {len(open_source(path)):,} videos{left_out}", flush=True)
    return 0


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vjepa data check`."""
    parser.description = "Decode every frame, compare checksums with the index, name what is broken (then exit code 1)."
    parser.epilog = "example: vjepa data check shards"
    parser.add_argument("src", metavar="SRC", help=_SOURCE)
    _add_common(parser)


def check(args: argparse.Namespace) -> int:
    """`vjepa data check`; the exit code. Raises DataError."""
    source = open_source(args.src, split=args.split, pictures=args.pictures)
    count = 0
    with progress("checked", len(source)) as update:
        for name, reason in checks.check_source(source, workers=args.workers, progress=update):
            print(f"{name}: {reason}", flush=True)
            count += 1
    print(f"{args.src}: {count:,} of {len(source):,} videos are broken", flush=True)
    return _FAILED if count else 0


VERBS = {
    "index": (add_index_arguments, index),
    "shard": (add_shard_arguments, shard),
    "check": (add_check_arguments, check),
}


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="", help="only the rows of this split")
    parser.add_argument("--pictures", action="store_true", help="the pictures of a folder count as videos of one frame")
    parser.add_argument("--workers", type=int, help="processes; 0 works in this one (default: one per core)")


def _size(text: str) -> int:
    """Bytes, from 256MB, 1G, 500 K or a plain number."""
    match = re.fullmatch(r"([0-9]+) ?([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if not match or int(match[1]) < 1:
        raise DataError(f"data shard: --shard-size {text} is no size: write it as in 256MB or 1G")
    return int(match[1]) * _UNITS[match[2].upper()]


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Yields update(done, total): a bar on a terminal, a line every ten seconds elsewhere, both on standard error."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("videos"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done, total=total: bar.update(task, completed=done, total=total)
        return
    began = last = time.monotonic()

    def update(done: int, total: int | None = total) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _PLAIN_SECONDS:
            last = now
            print(f"{what} {done:,} of {total:,} videos in {now - began:.0f} s", file=sys.stderr, flush=True)

    yield update
