"""The command line as a user meets it: help, exit codes, one line for each mistake."""

import subprocess
import sys
import time

import jax
import pytest

from vjepa_jax import cli


def test_help_is_instant():
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "vjepa_jax.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "vjepa train" in done.stdout
    assert time.perf_counter() - began < 5  # a fraction of a second; importing jax alone takes longer on a busy machine


@pytest.mark.parametrize("verb", ["train", "eval", "report", "models", "convert", "data", "bench", "tables"])
def test_every_verb_has_help_with_an_example(verb, capsys):
    try:
        code = cli.main([verb, "--help"])
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr().out
    assert code == 0 and "example: vjepa" in " ".join(output.split())


def run(capsys, *argv):
    try:
        code = cli.main(list(argv))
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("trian",), "unknown verb 'trian'"),
        (("data", "wrold"), "unknown part 'wrold'"),
        (("bench", "all"), "unknown part 'all'"),
        (("report", "--workdir", "nowhere-at-all"), "is not a folder"),
        (("train", "--config", "nofile.py", "--workdir", "w"), "config file nofile.py does not exist"),
        (("train", "--config", "x.py", "--workdir", "w", "--steps=3"), "config keys are set with --config.KEY=VALUE"),
        (("eval", "--workdir", "nowhere-at-all", "--data", "x.csv"), "is not a run folder"),
        (("eval",), "name a file of protocols with --config, or a run to probe with --workdir"),
        (("eval", "--config", "x.py"), "the following arguments are required: --checkpoint"),
        (("eval", "--config", "nofile.py", "--checkpoint", "w"), "config file nofile.py does not exist"),
        (("eval", "--config", "x.py", "--checkpoint", "w", "--data", "x.csv"), "--data does not go with --config"),
        (("eval", "--workdir", "w", "--config.a.b=1"), "--config.a.b=1 does not go with --workdir"),
        (("convert", "nowhere-at-all", "x"), "is not a run folder"),
    ],
)
def test_a_mistake_is_told_in_the_last_line(argv, message, capsys):
    code, lines = run(capsys, *argv)
    assert code == cli.USAGE_ERROR and message in lines[-1]


def test_training_mistakes_are_one_line(repo, tmp_path, capsys):
    command = ("train", "--config", str(repo / "experiments/pretrain/folder.py"), "--workdir", str(tmp_path / "run"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"-")
    for extra, message in (
        ((f"--config.data.path={tmp_path / 'empty'}",), "no videos in"),
        (("--config.data.path=v", "--config.model.varaint=vit_base"), "did you mean 'model.variant'"),
        (("--config.data.path=v", "--config.model.variant=vit_bse"), "did you mean 'vit_base'"),
        (("--config.data.path=v", "--config.data.num_frames=15"), "not divisible by model.tubelet_size"),
        ((f"--config.data.path={tmp_path / 'videos'}", "--config.batch_size=9"), "batch_size = 9 is not divisible by"),
    ):
        code, lines = run(capsys, *command, *extra)
        assert code == cli.USAGE_ERROR and len(lines) == 1 and message in lines[0], lines
    assert not (tmp_path / "run").exists()  # a refused command leaves nothing that would refuse the corrected one


def test_compiled_programs_are_kept_unless_told_where(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("VJEPA_CACHE", str(tmp_path))
    try:
        cli._keep_programs()
        assert jax.config.jax_compilation_cache_dir == before  # the tests have a place of their own
        jax.config.update("jax_compilation_cache_dir", None)
        cli._keep_programs()
        assert jax.config.jax_compilation_cache_dir is None  # set to nothing by the environment's variable
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        cli._keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
