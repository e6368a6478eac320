"""The floor plan: imports run one way, data workers stay free of jax, nothing needs TensorFlow or torch."""

import ast
import pathlib
import subprocess
import sys

import pytest

# Each room may import from itself and from the rooms to its left; rooms of one level do not know each other.
LEVELS = (
    ("config_build",),
    ("config_augment", "config_eval"),
    ("config_checks",),
    ("config", "ops"),
    ("config_stages",),
    ("config_file",),
    ("models",),
    ("objectives", "convert", "parallel"),
    ("training",),
    ("encoder",),
    ("evals", "streaming", "planning"),
    ("starting", "prepare"),
    ("train",),
    ("stages", "dryrun", "bench"),
    ("ahead",),
    ("bench_step",),
    ("bench_peer",),
    ("cli_options",),
    ("cli_bench", "cli_eval", "cli_tables"),
    ("cli",),
)
LEVEL = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}


def imported_modules(path: pathlib.Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_imports_run_one_way(repo):
    checked = 0
    for path in sorted((repo / "vjepa_jax").rglob("*.py")):
        relative = path.relative_to(repo / "vjepa_jax")
        room = relative.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module in imported_modules(path):
            if module.split(".")[0] == "vjepa_jax" and room_of(module) not in ("__version__", room):
                other = room_of(module)
                assert LEVEL[other] < LEVEL[room], f"{relative} imports {module}"
                checked += 1
            if module.split(".")[0] == "data_pipelines":
                assert room in (
                    "evals",
                    "prepare",
                    "train",
                    "dryrun",
                    "bench",
                    "bench_step",
                    "bench_peer",
                    "ahead",
                    "cli",
                    "cli_bench",
                ), f"{relative} imports {module}"
    assert checked > 30


def test_data_pipelines_know_only_the_config(repo):
    for path in sorted((repo / "data_pipelines").rglob("*.py")):
        for module in imported_modules(path):
            root = module.split(".")[0]
            assert root not in ("jax", "flax", "optax", "tensorflow", "torch"), f"{path.name} imports {module}"
            if root == "vjepa_jax":
                assert module.startswith("vjepa_jax.config."), f"{path.name} imports {module}"


def test_experiments_import_ml_collections_and_nothing_else(repo):
    files = sorted((repo / "experiments").rglob("*.py"))
    assert files
    peers = (*sys.stdlib_module_names, "numpy", "torch", "transformers")  # run by `vjepa bench step`, on their own
    others = {"launch": sys.stdlib_module_names, "benchmarks": peers}
    for path in files:
        allowed = others.get(path.parent.name, ("ml_collections",))
        for module in imported_modules(path):
            assert module.split(".")[0] in allowed, f"{path.name} imports {module}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vjepa_jax.cli", ("jax", "numpy", "ml_collections")),
        ("vjepa_jax.config", ("jax", "numpy")),
        ("vjepa_jax.train", ("tensorflow", "torch")),
    ],
)
def test_what_an_import_does_not_load(module, absent):
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
