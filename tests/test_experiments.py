"""Every config under experiments/, in every variant and stage, builds, validates and shape-checks."""

import ast
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import masking
from vjepa_jax import config_file, objectives
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import suite
from vjepa_jax.training.optim import decay_mask, make_optimizer
from vjepa_jax.training.state import abstract_state
from vjepa_jax.training.step import make_train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent / "experiments"
FILES = sorted(
    p.relative_to(ROOT).as_posix()
    for p in ROOT.rglob("*.py")
    if p.parent.name not in ("launch", "benchmarks", "tables")
)


def variants_of(file):
    """The VARIANTS of a config file, from running it; [""] where get_config takes no argument."""
    namespace = {}
    exec(compile((ROOT / file).read_text(), file, "exec"), namespace)
    return namespace.get("VARIANTS", ("",))


EVALS = [file for file in FILES if file.startswith("evals/")]
RUNS = [file for file in FILES if file not in EVALS]
CASES, EVAL_CASES = (
    [f"{file}:{variant}".rstrip(":") for file in files for variant in variants_of(file)] for files in (RUNS, EVALS)
)


@pytest.mark.parametrize("file", FILES)
def test_a_config_says_how_it_is_run_and_lists_its_variants(file):
    text = (ROOT / file).read_text()
    for line in ("COMMAND:", "HARDWARE:", "PUBLISHED NUMBER:", "MEASURED:"):
        assert line in text, f"{file} does not say {line}"
    (function,) = (n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == "get_config")
    assert bool(function.args.args) == (variants_of(file) != ("",)), f"{file}: VARIANTS and the argument go together"


@pytest.mark.parametrize("case", EVAL_CASES)
def test_every_file_of_evaluations_builds(case):
    groups = config_file.load_groups(str(ROOT / case), [], suite.CONFIGS)
    assert groups and all(type(cfg) is suite.CONFIGS[name] for name, cfg in groups.items())


def state_of(run):
    """Shapes of the training state."""
    return abstract_state(objectives.create(run), make_optimizer(run))


@pytest.mark.parametrize("case", CASES)
def test_every_variant_and_stage_builds_with_its_state(case):
    stages = config_file.load_stages(str(ROOT / case))
    first = stages[0][1]
    params = state_of(first)["params"]
    for name, run in stages:
        for stream in (run, *run.stream_runs.values()):
            assert all(context > 0 and target > 0 for context, target in masking.make_plan(stream).budgets)
        decay_mask(params, run.optim)
        assert (run.objective, run.model) == (first.objective, first.model), (
            f"{name} could not start from the one before"
        )


@pytest.mark.parametrize("file", [file for file in RUNS if not file.startswith("cooldown/")])
def test_the_step_of_a_file_has_shapes(file):
    """A cooldown is the program of its pre-training at another size."""
    run = config_file.load_stages(str(ROOT / f"{file}:{variants_of(file)[0]}".rstrip(":")))[-1][1]
    objective, optimizer = objectives.create(run), make_optimizer(run)
    state = state_of(run)
    after, metrics = jax.eval_shape(make_train_step(objective, optimizer, run), state, inputs_of(run))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(after) == shapes(state)
    assert all(m.shape == () and np.issubdtype(m.dtype, np.floating) for m in metrics.values())


def inputs_of(run):
    """Shapes of a batch, with those of further streams where there are some."""
    batch, (height, width) = run.batch_size, run.data.size
    ids = lambda count: jax.ShapeDtypeStruct((batch, count), jnp.int32)
    inputs = {
        "video": jax.ShapeDtypeStruct((batch, run.data.num_frames, height, width, 3), jnp.uint8),
        "masks": [
            {"context": ids(g.context), "target": ids(g.boxes * g.target)} for g in masking.make_plan(run).groups
        ],
    }
    return inputs | {"streams": {name: inputs_of(stream) for name, stream in run.stream_runs.items()}}


@pytest.mark.parametrize(
    ("case", "tokens", "encoder", "steps"),
    [
        ("pretrain/vjepa2.py:vitg", [2048], "vit_giant_xformers", [240_000]),
        ("cooldown/vjepa2.py:vitg_384", [18_432], "vit_giant_xformers", [12_000]),
        ("pretrain/vjepa1.py:vith_384", [4608], "vit_huge", [90_000]),
        ("cooldown/vjepa21.py:vitG", [18_432], "vit_gigantic_xformers", [12_000]),
        ("pretrain/ijepa.py:vith14", [256], "vit_huge", [187_500]),
    ],
)
def test_a_variant_is_what_its_name_says(case, tokens, encoder, steps):
    runs = [run for _, run in config_file.load_stages(str(ROOT / case))]
    assert [np.prod(run.grid) for run in runs] == tokens and [run.steps for run in runs] == steps
    assert {run.model.variant for run in runs} == {encoder}


def test_a_ladder_ends_where_its_docstring_says():
    runs = [run for _, run in config_file.load_stages(str(ROOT / "pretrain/progressive.py:vitl"))]
    assert np.prod(runs[0].grid) == 256 and np.prod(runs[-1].grid) == 36_864
    tokens = [np.prod(run.grid) for run in runs]
    assert tokens == sorted(tokens)
    # the learning rate is one line: a stage begins where the one before ended
    for before, after in itertools.pairwise(runs):
        ends = before.optim.lr if before.optim.schedule == "constant" else before.optim.final_lr
        assert after.optim.lr == ends and after.optim.warmup_steps == 0 and after.seed != before.seed


def test_an_unknown_variant_is_one_line():
    with pytest.raises(ConfigError, match=r"has no variant 'vitlarge': .* vitl, vith, vitg; did you mean 'vitl'\?"):
        config_file.load_stages(str(ROOT / "pretrain/vjepa2.py:vitlarge"))
