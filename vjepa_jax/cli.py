"""The `vjepa` command. A verb imports its module only when it is called, so that help is instant."""

import argparse
import contextlib
import json
import os
import shlex
import sys
import time

from vjepa_jax.cli_options import USAGE_ERROR, part, reject_unknown

_BEGAN = time.perf_counter()  # importing jax is part of a start

HELP = """usage: vjepa VERB [options]

  train    pre-train a model:        vjepa train --config FILE --config.data.path=DIR --workdir RUN
  eval     measure a trained one:    vjepa eval --config FILE --checkpoint RUN
  report   write RUN/report.html:    vjepa report --workdir RUN
  tables   ours beside published:    vjepa tables runs
  models   list the V-JEPA family:   vjepa models
  convert  weights in and out:       vjepa convert vitl.pt runs/vitl
  compile  for TPUs not here:        vjepa compile --config FILE --topology v5e:4x4
  data     make, check, show shards: vjepa data shard videos shards
  bench    measure, one JSON a line: vjepa bench masks

`vjepa VERB --help` shows options and an example."""


def main(argv: list[str] | None = None) -> int:
    """Run a verb. Returns the exit code: 0 done, 1 failed, 2 bad usage or configuration, 75 stopped and saved."""
    argv = sys.argv[1:] if argv is None else argv
    verbs = {"train": _train, "eval": _eval, "report": _report, "models": _models, "convert": _convert}
    verbs |= {"compile": _compile, "data": _data, "bench": _bench, "tables": _tables}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if argv else USAGE_ERROR
    if argv[0] == "--version":
        from vjepa_jax import __version__

        print(__version__)
        return 0
    if argv[0] not in verbs:
        print(f"vjepa: unknown verb {argv[0]!r}; the verbs are {', '.join(verbs)}", file=sys.stderr)
        return USAGE_ERROR
    try:
        return verbs[argv[0]](argv[1:])
    except ValueError as error:
        # ConfigError, DataError, CheckpointError and their like are one line for the user; other ValueErrors are bugs
        if type(error).__module__.split(".")[0] not in ("vjepa_jax", "data_pipelines"):
            raise
        print(f"vjepa {argv[0]}: {error}", file=sys.stderr)
        return USAGE_ERROR


def _train(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vjepa train",
        description="Pre-train a model. Run the same command again to go on after a stop.",
        epilog="example: vjepa train --config experiments/pretrain/folder.py --config.data.path=videos "
        "--config.batch_size=8 --workdir runs/first",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="config file; override keys with --config.KEY=VALUE"
    )
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run: checkpoints, metrics, report")
    parser.add_argument(
        "--distributed",
        nargs="?",
        const="auto",
        metavar="HOST:PORT,INDEX,COUNT",
        help="one of several processes; without a value on Cloud TPU, SLURM, Kubernetes, Open MPI",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what the run would cost, and do nothing")
    parser.add_argument("--devices", type=int, metavar="N", help="with --dry-run: of so many; default: those here")
    parser.add_argument("--chip", default="h100", help="with --dry-run: h100, h200, a100, v4, v5e, v5p, v6e")
    parser.add_argument("--mfu", type=float, default=0.35, help="with --dry-run: share of the peak that is reached")
    parser.add_argument("--json", action="store_true", help="with --dry-run: one JSON object a stage")
    options, overrides = parser.parse_known_args(argv)
    reject_unknown(parser, overrides)
    if not options.workdir and not options.dry_run:
        parser.error("the following arguments are required: --workdir")
    from vjepa_jax import config_file

    runs = config_file.load_stages(options.config, overrides)
    if options.dry_run:
        return _dry_run(runs, options)
    _keep_programs()
    from vjepa_jax import stages, train
    from vjepa_jax.parallel import distributed
    from vjepa_jax.training.spikes import LossSpikeError

    try:
        with distributed.member(options.distributed) if options.distributed else contextlib.nullcontext():
            return stages.train(runs, options.workdir, shlex.join(["vjepa", "train", *argv]), since=_BEGAN)
    except (train.NonFiniteLossError, LossSpikeError) as error:
        print(f"vjepa train: {error}", file=sys.stderr)
        return train.EXIT_FAILED


def _dry_run(runs: list, options: argparse.Namespace) -> int:
    """`runs` are the stages of config_file.load_stages."""
    from vjepa_jax import dryrun

    if options.devices is None:
        import jax

        options.devices = jax.device_count()
    machine = dryrun.Machine(options.devices, options.chip, options.mfu)
    rows = [dryrun.describe(name, run, machine) for name, run in runs]
    print("\n".join(map(json.dumps, rows)) if options.json else dryrun.format_plan(rows))
    return 0


def _eval(argv: list[str]) -> int:
    if argv and not {"-h", "--help"} & set(argv):
        _keep_programs()
    from vjepa_jax import cli_eval

    return cli_eval.main(argv)


def _report(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vjepa report",
        description="Write report.html of a run from its metrics, pictures and probes; needs no network to open.",
        epilog="example: vjepa report --workdir runs/first",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR")
    options = parser.parse_args(argv)
    from vjepa_jax.training.report import write_report

    if not os.path.isdir(options.workdir):
        print(f"vjepa report: {options.workdir} is not a folder", file=sys.stderr)
        return USAGE_ERROR
    print(write_report(options.workdir))
    return 0


def _tables(argv: list[str]) -> int:
    from vjepa_jax import cli_tables

    return cli_tables.main(argv)


def _models(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vjepa models",
        description="The V-JEPA family and our small sizes: parameters, tokens and FLOPs of encoding a clip.",
        epilog="example: vjepa models --json",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with exact counts")
    options = parser.parse_args(argv)
    from vjepa_jax.models import family

    rows = [family.describe(member) for member in family.FAMILY]
    print("\n".join(map(json.dumps, rows)) if options.json else family.format_family(rows))
    return 0


def _convert(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vjepa convert",
        description="Weights from and to official PyTorch files and Hugging Face folders, bit for bit. vjepa_jax.load "
        "takes what comes out, and SRC as well.",
        epilog="example: vjepa convert vitg.pt runs/vitg --variant vit_giant_xformers",
        allow_abbrev=False,
    )
    parser.add_argument("src", metavar="SRC", help="run folder, official .pt file, Hugging Face folder, or one of ours")
    parser.add_argument("dst", metavar="DST", help="folder (ours, hf) or file (official) to write; must not exist")
    parser.add_argument("--to", choices=("ours", "official", "hf"), help="default: official for *.pt, else ours")
    parser.add_argument("--step", type=int, help="checkpoint of a run folder; default: the newest")
    towers = ("encoder", "target_encoder", "ema_encoder")
    parser.add_argument("--tower", choices=towers, help="of an official file; default: a target encoder")
    parser.add_argument("--variant", help="size by name, where an official file fits several (models/variants.py)")
    parser.add_argument("--heads", type=int, dest="num_heads", help="of an official encoder whose size has no name")
    parser.add_argument("--predictor-heads", type=int, help="likewise of the predictor")
    parser.add_argument("--position", choices=("sincos", "rope_tiled"), help="of files of V-JEPA 1, and of V-JEPA 2")
    parser.add_argument("--classifier", type=int, help="which probe of an official file with several")
    parser.add_argument("--probe", metavar="SRC", help="also take the probe of this official file or folder")
    parser.add_argument("--probe-eps", type=float, help="change it: published probes have 1e-5, transformers 1e-6")
    options = parser.parse_args(argv)
    from vjepa_jax import encoder

    return encoder.convert(options)


def _compile(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vjepa compile",
        description="Compile the training step for TPUs that are not here: whether it fits, memory of a chip, "
        "collectives, and the least time that a step takes. Needs libtpu, and no TPU.",
        epilog="example: vjepa compile --config experiments/pretrain/vjepa2.py:vitl --topology v5e:16x16 "
        "--config.mesh.replica=16 --config.model.remat=full",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="config file; override keys with --config.KEY=VALUE"
    )
    parser.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="v5e:4x4, v5p:4x4x4, v6e:16x16, ...")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="so many of them, over the data centre")
    parser.add_argument("--search", action="store_true", help="the largest batch that fits for each model.remat")
    parser.add_argument("--json", action="store_true", help="one JSON object an attempt, as each is done")
    options, overrides = parser.parse_known_args(argv)
    reject_unknown(parser, overrides)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # with libtpu installed, jax would look for a TPU
    from vjepa_jax import ahead, config_file
    from vjepa_jax.parallel.compile import Topology

    topology, rows = Topology(options.topology, options.slices), []
    for name, run in config_file.load_stages(options.config, overrides):
        for row in ahead.search(name, run, topology) if options.search else [ahead.describe(name, run, topology)]:
            rows.append(row)
            if options.json:
                print(json.dumps(row), flush=True)
    if not options.json:
        print(ahead.format_rows(rows))
    enough = any if options.search else all
    return 0 if enough(row["fits"] for row in rows) else 1


DATA_HELP = """usage: vjepa data index | shard | check | show | tfds | world [options]

  index    look at every video of a folder or manifest, write an index that opens at once
  shard    write videos into ArrayRecord shards with an index, encoded anew on request
  check    decode everything, compare checksums, name what is broken
  show     draw clips as training gets them, with their masks
  tfds     make a dataset of TensorFlow Datasets of a source, without TensorFlow
  world    write the embedded world of moving shapes as H.264 files

example: vjepa data shard videos shards --short-side 256 --gop 12"""


def _data(argv: list[str]) -> int:
    if (code := part("data", argv, ("index", "shard", "check", "show", "tfds", "world"), DATA_HELP)) is not None:
        return code
    parser = argparse.ArgumentParser(prog=f"vjepa data {argv[0]}", allow_abbrev=False)
    if argv[0] == "world":
        from data_pipelines import world

        world.add_arguments(parser)
        world.run(parser.parse_args(argv[1:]))
        return 0
    if argv[0] == "show":
        return _show(parser, argv[1:])
    if argv[0] == "tfds":
        from data_pipelines import tfds_builder

        tfds_builder.add_arguments(parser)
        return tfds_builder.run(parser.parse_args(argv[1:]))
    from data_pipelines import data_cli

    add_arguments, run = data_cli.VERBS[argv[0]]
    add_arguments(parser)
    return run(parser.parse_args(argv[1:]))


def _show(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    from data_pipelines import contact_sheet
    from vjepa_jax import config_file
    from vjepa_jax.training.pictures import mask_picture

    contact_sheet.add_arguments(parser)
    options, overrides = parser.parse_known_args(argv)
    reject_unknown(parser, overrides)
    if options.config:
        run = config_file.load(options.config, [*overrides, f"--config.data.path={options.src}"])
    elif overrides:
        parser.error(f"{overrides[0]} overrides a key of a config file: name one with --config FILE")
    else:
        run = contact_sheet.default_run(options.src)
    contact_sheet.write_sheet(run, options.clips, options.dst, mask_picture)
    print(options.dst)
    return 0


def _bench(argv: list[str]) -> int:
    from vjepa_jax import cli_bench

    return cli_bench.main(argv)


def _keep_programs() -> None:
    """Compiled programs are kept for the next start: in $VJEPA_CACHE/xla, or where JAX_COMPILATION_CACHE_DIR says."""
    import jax

    from data_pipelines.storage import cache_folder

    if not jax.config.jax_compilation_cache_dir and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache_folder(), "xla"))


def entry() -> None:
    """The console script. The guard matters: grain's workers import this module again."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
