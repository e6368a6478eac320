"""`vjepa data shard --beam`: the jobs of shards.py on the machines of a cluster, through Apache Beam.

Beam is an extra (`pip install vjepa_jax[beam]`). Every worker has this package, reads the source and writes the
destination under the same paths: shards are written to a file system that all of them share.
"""

import os
import shlex
from typing import Any

from data_pipelines import shards
from data_pipelines.sources import INDEX_NAME, DataError


def write_shards(src: str, dst: str, *, options: str = "", **arguments: Any) -> str:
    """`shards.write_shards` with the jobs done by Beam; the files are the same, byte for byte.

    The workers of Beam may do a job twice. After a stop the same call does what is missing, here or with Beam.

    Args:
      options: of Beam, as on a command line: `--runner=FlinkRunner --flink_master=HOST:8081`; empty for this machine.
      arguments: as of `shards.write_shards`.

    Raises:
      DataError: as there; no Beam; options that Beam does not take; a job that fails.
    """
    plan = {key: value for key, value in arguments.items() if key not in ("workers", "progress")}
    try:
        jobs = [job for job in shards.plan_shards(src, dst, **plan) if not shards.is_finished(job)]
    except OSError as error:
        raise DataError(f"{dst} cannot be written ({error}): free space or name another folder") from error
    if jobs and not os.path.exists(os.path.join(os.path.dirname(jobs[0].shard), INDEX_NAME)):
        run_jobs(jobs, options)
    return shards.write_shards(src, dst, **arguments | {"workers": 0})  # joins the parts


def run_jobs(jobs: list[shards.ShardJob], options: str = "") -> None:
    """`shards.write_shard` of every job, by the workers of a pipeline. Raises DataError."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError(f"--beam needs Apache Beam ({error}): pip install 'vjepa_jax[beam]'") from error
    try:
        parsed = PipelineOptions(shlex.split(options))
        parsed.get_all_options()  # parses them
        pipeline = apache_beam.Pipeline(options=parsed)
    except (ValueError, SystemExit) as error:
        reason = "see above" if isinstance(error, SystemExit) else _one_line(error)  # argparse says why, and exits
        raise DataError(f"Beam does not take --beam-options {options!r}: {reason}") from error
    # Without the shuffle, runners may fuse all jobs into one bundle, for one worker.
    _ = (
        pipeline
        | "jobs" >> apache_beam.Create(jobs)
        | "spread" >> apache_beam.Reshuffle()
        | "write" >> apache_beam.Map(shards.write_shard)
    )
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # which types depends on the runner
        raise DataError(
            f"the Beam pipeline failed ({_one_line(error)}); what is finished is kept, run the same command again"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
