"""What a fresh run takes from other weights: the target encoder (`init_from`), or a run's whole state (`init.weights`);
and the teacher of a distillation.

The published cooldown goes on from encoder, predictor, target and optimiser (vjepa2 app/vjepa/train.py, anneal_ckpt);
so does every stage of a ladder after the first.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from vjepa_jax import objectives
from vjepa_jax.config import ConfigError, ModelConfig, RunConfig, to_dict
from vjepa_jax.config_build import flatten
from vjepa_jax.convert import formats
from vjepa_jax.encoder import load, read_config
from vjepa_jax.models.variants import encoder_size
from vjepa_jax.parallel import partitioning
from vjepa_jax.training.checkpoint import CheckpointError, load_parts
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.state import abstract_state

# settings of the model that must be the same, in the order in which a difference is named
_SETTINGS = ("patch_size", "tubelet_size", "position", "levels", "image_tokenizer", "cls_token", "registers")
_SETTINGS += tuple(f"predictor.{key}" for key in ("kind", "embed_dim", "depth", "num_heads", "num_mask_tokens"))


def check_source(run: RunConfig, workdir: pathlib.Path, abstract: Any) -> None:
    """Before anything is written: raises ConfigError, CheckpointError or ConvertError where what the run starts from is
    not there or does not fit. A target encoder is read for this, and again by `begin`: no copy waits in between.

    Args:
      abstract: shapes of the run's own training state.
    """
    if run.teacher is not None:
        _load_teacher(run, abstract["aux"]["teacher"])
    folder = _source(run, workdir)
    if run.init.weights != "all":
        if folder is not None:
            _load_target(run, folder, abstract["params"])
        return
    if folder is None:
        raise ConfigError("init.weights='all' needs the run to take them from: set --config.init_from=RUN")
    if formats.kind(folder) != "run":
        raise ConfigError(
            f"init.weights='all' needs a run, {folder} has no online encoder: set --config.init.weights=target"
        )
    theirs = read_config(folder)
    given = abstract_state(objectives.create(theirs), make_optimizer(theirs))
    for part in ("params", "aux"):
        _check_same_model(folder, theirs, run, given[part], abstract[part])


def begin(
    run: RunConfig, workdir: pathlib.Path, state: Any, mesh: jax.sharding.Mesh, warn: Callable[[str], None] = print
) -> Any:
    """The fresh `state` with what `run.init` takes from elsewhere, laid out as before; its step stays 0.

    Args:
      warn: is given one line where the weights have no predictor, which then stays fresh.
    """
    folder = _source(run, workdir)
    if folder is not None and run.init.weights == "all":
        state = _whole_state(run, folder, state, mesh)
    elif folder is not None:
        state = _target(run, folder, state, warn)
    if run.teacher is not None:
        fresh = state["aux"]["teacher"]
        state = {**state, "aux": state["aux"] | {"teacher": _place(_load_teacher(run, fresh), fresh)}}
    return state


def _source(run: RunConfig, workdir: pathlib.Path) -> pathlib.Path | None:
    """The run or weights to start from; the run of the stage before lies beside `workdir`, wherever both are moved."""
    if run.init.stage:
        return workdir.parent / run.init.stage
    return pathlib.Path(run.init_from) if run.init_from else None


def _target(run: RunConfig, folder: pathlib.Path, state: Any, warn: Callable[[str], None]) -> Any:
    """Encoder and target from the target encoder of the weights in `folder`, and their predictor where there is one."""
    given = _load_target(run, folder, state["params"])
    if "predictor" not in given:
        warn(f"{folder} has no predictor of masked tokens: this run's starts fresh")
    params = {part: _place(tree, state["params"][part]) for part, tree in given.items()}
    target = _place(given["encoder"], state["aux"]["target"])
    return {**state, "params": state["params"] | params, "aux": state["aux"] | {"target": target}}


def _place(given: Any, ours: Any) -> Any:
    """Copies, as steps give arrays away, where `ours` lie."""
    return jax.tree.map(lambda x, y: jax.device_put(np.array(x), y.sharding), given, ours)


def _load_teacher(run: RunConfig, wanted: Any) -> Any:
    """The encoder of `teacher.path`, shaped as `wanted`."""
    if not run.teacher.path:
        raise ConfigError("teacher.path is empty: give a run folder or checkpoint with --config.teacher.path=PATH")
    source = load(run.teacher.path, like=run.teacher.model)
    given = source.params["encoder"]
    if _shapes(given) != _shapes(wanted):
        path, variant = run.teacher.path, run.teacher.model.variant
        raise CheckpointError(f"teacher.path={path} is not a {variant} as teacher.model says: make them agree")
    return given


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}


def _load_target(run: RunConfig, folder: pathlib.Path, wanted: Any) -> dict[str, Any]:
    """The target encoder and, where there is one, the predictor of anything that `load` takes; `wanted`: params."""
    source = load(folder, like=run.model)
    given = {part: source.params[part] for part in ("encoder", "predictor") if part in source.params}
    _check_same_model(folder, source.run, run, given, {part: wanted[part] for part in given})
    return given


def _whole_state(run: RunConfig, folder: pathlib.Path, state: Any, mesh: jax.sharding.Mesh) -> Any:
    """Parameters and aux (target encoder) of the run in `folder`, read onto the mesh, and with init.optimizer Adam's
    moments. Their step count comes along, as bias correction needs it; schedules start anew."""
    theirs = read_config(folder)
    objective, optimizer = objectives.create(theirs), make_optimizer(theirs)
    shardings = partitioning.state_shardings(abstract_state(objective, optimizer), mesh)
    abstract = abstract_state(objective, optimizer, shardings)
    wanted = ("params", "aux", "opt") if run.init.optimizer else ("params", "aux")
    given = load_parts(folder, {part: abstract[part] for part in wanted})
    opt = state["opt"]
    if run.init.optimizer:
        is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
        (adam,) = filter(is_adam, jax.tree.leaves(given["opt"], is_leaf=is_adam))
        opt = jax.tree.map(lambda node: adam if is_adam(node) else node, opt, is_leaf=is_adam)
    return {**state, "params": given["params"], "aux": given["aux"], "opt": opt}


def _check_same_model(folder: Any, theirs: RunConfig, run: RunConfig, given: Any, wanted: Any) -> None:
    """Raises CheckpointError that names the first setting, else the first parameter, in which two models differ."""
    for name, there, here in _compared(theirs.model, run.model, given, wanted):
        if there != here:
            raise CheckpointError(
                f"{folder} holds another model: {name} is {there} there and {here} in the config: "
                "use the same model settings"
            )


def _compared(theirs: ModelConfig, ours: ModelConfig, given: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value there, value here) of what two models must share; what says most comes first."""
    sizes = [encoder_size(model) for model in (theirs, ours)]
    if sizes[0] != sizes[1] and sizes[0] == encoder_size(ModelConfig(variant=theirs.variant, mlp=theirs.mlp)):
        yield "model.variant", theirs.variant, ours.variant
    for key in vars(sizes[0]):
        yield f"the encoder's {key}", getattr(sizes[0], key), getattr(sizes[1], key)
    settings = [flatten(to_dict(model)) for model in (theirs, ours)]
    for key in _SETTINGS:
        if "predictor" in given or not key.startswith("predictor."):
            yield f"model.{key}", settings[0][key], settings[1][key]
    shapes = [_shapes(tree) for tree in (given, wanted)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        yield f"the shape of {name}", shapes[0].get(name, "absent"), shapes[1].get(name, "absent")
