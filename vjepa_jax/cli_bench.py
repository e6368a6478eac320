"""`vjepa bench`: every benchmark prints one JSON object a line."""

import argparse
import itertools
import json
from collections.abc import Iterator

from vjepa_jax.cli_options import part, reject_unknown

BENCH_HELP = """usage: vjepa bench data | index | masks | predictor | step [options]

  data       clips a second of this pipeline, of PyAV, decord2 and OpenCV, and where the time goes
  index      time and memory to open an index of many videos
  masks      time to draw the masks of a batch on the host
  predictor  time and FLOPs of the published predictor and of the cross-attention one
  step       the training step of a config on the devices here: clips/s, MFU, memory, time to compile

example: vjepa bench predictor --variant vit_small --frames 16 --resolution 128 --batch 4"""


def main(argv: list[str]) -> int:
    """Run one of the benchmarks. Returns the exit code."""
    if (code := part("bench", argv, ("data", "index", "masks", "predictor", "step"), BENCH_HELP)) is not None:
        return code
    parser = argparse.ArgumentParser(prog=f"vjepa bench {argv[0]}", allow_abbrev=False)
    if argv[0] == "data":
        parser.add_argument("--quick", action="store_true", help="one round and one distance of key frames")
        parser.add_argument("--source", default="", metavar="DIR", help="videos to measure with; default: shapes")
        options = parser.parse_args(argv[1:])
        from data_pipelines import decode_bench
        from vjepa_jax import bench

        records = itertools.chain(decode_bench.benchmark(**vars(options)), bench.transfer())
    elif argv[0] == "index":
        parser.add_argument("--rows", type=int, default=20_000_000)
        parser.add_argument("--folder", help="where the index is written for a while, 350 bytes a row")
        options = parser.parse_args(argv[1:])
        from data_pipelines import index_bench

        records = iter([index_bench.benchmark(**vars(options))])
    elif argv[0] == "masks":
        parser.parse_args(argv[1:])
        from data_pipelines import masking_bench

        records = (masking_bench.benchmark(policy=policy) for policy in ("uniform", "first_k"))
    elif argv[0] == "step":
        records = _step(parser, argv[1:])
    else:
        parser.add_argument("--variant", default="vit_large")
        parser.add_argument("--frames", dest="num_frames", type=int, default=16)
        parser.add_argument("--resolution", type=int, default=256)
        parser.add_argument("--batch", type=int, default=1)
        parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
        options = parser.parse_args(argv[1:])
        from vjepa_jax import bench

        records = bench.predictors(**vars(options))
    for record in records:
        print(json.dumps(record), flush=True)
    return 0


def _step(parser: argparse.ArgumentParser, argv: list[str]) -> Iterator[dict]:
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="as of vjepa train; data.path is not read"
    )
    parser.add_argument("--repeats", type=int, default=30, help="steps that are timed")
    parser.add_argument("--profile", metavar="DIR", help="write a profile of three more steps; read its collectives")
    parser.add_argument(
        "--peer", metavar="FILE", help="a script with the same step in another framework, run before ours"
    )
    options, overrides = parser.parse_known_args(argv)
    reject_unknown(parser, overrides)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats} must be at least 1")
    from vjepa_jax import bench_step, config_file

    run = config_file.load(options.config, overrides)
    if options.peer:  # first, while the devices are free
        from vjepa_jax import bench_peer

        yield bench_peer.benchmark(run, options.peer, options.repeats)
    yield bench_step.benchmark(run, options.repeats, options.profile)
