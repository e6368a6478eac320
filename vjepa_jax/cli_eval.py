"""`vjepa eval`: the protocols of a config file, or frozen probes on labelled videos."""

import argparse
import shlex

from vjepa_jax.cli_options import reject_unknown


def main(argv: list[str]) -> int:
    """Run evaluations of a trained encoder. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="vjepa eval",
        usage="vjepa eval --config FILE[:ARG] --checkpoint RUN [--config.PROTOCOL.KEY=VALUE ...]\n"
        "       vjepa eval --workdir RUN --data labels.csv [options]",
        description="Evaluate a trained encoder beside random init and raw pixels: with --config the protocols of a "
        "file of experiments/evals, else frozen linear, kNN and attentive probes of labelled videos.",
        epilog="example: vjepa eval --config experiments/evals/world_suite.py --checkpoint runs/first   or   "
        "vjepa eval --workdir runs/first --data labels.csv   (columns path, label, split)",
        allow_abbrev=False,
    )
    suite = parser.add_argument_group("protocols of a file")
    suite.add_argument("--config", metavar="FILE[:ARG]", help="override keys with --config.PROTOCOL.KEY=VALUE")
    suite.add_argument("--checkpoint", metavar="RUN", help="run folder, official .pt file or Hugging Face folder")
    suite.add_argument("--out", metavar="DIR", help="folder that receives evals/NAME/scores.json; default: RUN")
    probes = parser.add_argument_group("probes of labelled videos")
    probes.add_argument("--workdir", metavar="DIR", help="folder of the run; receives probes.json")
    probes.add_argument("--data", default=None, metavar="CSV", help="labelled videos; default: eval.path of the run")
    probes.add_argument("--probes", default=None, help="comma-separated: linear,knn,attentive")
    probes.add_argument("--labels", default=None, help="comma-separated sizes of the labelled subset; default: all")
    probes.add_argument("--seeds", type=int, default=None)
    probes.add_argument("--segments", type=int, default=None, help="clips a video, their tokens joined in time")
    parser.add_argument("--step", type=int, default=None, help="checkpoint of a run to take; default: the newest")
    options, overrides = parser.parse_known_args(argv)
    reject_unknown(parser, overrides)
    if options.config:
        _refuse(parser, options, ("workdir", "data", "probes", "labels", "seeds", "segments"), "--config")
        if not options.checkpoint:
            parser.error("the following arguments are required: --checkpoint")
    else:
        _refuse(parser, options, ("checkpoint", "out"), "--workdir", overrides)
        if not options.workdir:
            parser.error("name a file of protocols with --config, or a run to probe with --workdir")
    if options.config:
        from vjepa_jax.evals import suite as suite_module

        return suite_module.main(options, overrides, shlex.join(["vjepa", "eval", *argv]))
    from vjepa_jax.evals import run

    return run.main(options)


def _refuse(parser: argparse.ArgumentParser, options, names: tuple[str, ...], form: str, overrides=()) -> None:
    """An option of the other form is a mistake, not to be passed over."""
    given = [f"--{name}" for name in names if getattr(options, name) is not None] + list(overrides)
    if given:
        parser.error(f"{given[0]} does not go with {form}: see vjepa eval --help")
