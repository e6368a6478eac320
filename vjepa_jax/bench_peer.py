"""The peer of `vjepa bench step`: the same training step in another framework, run as a process of its own.

The script (experiments/benchmarks/torch_step.py) gets a folder with spec.json and batches of the pixels and masks that
our step is timed on, and prints one JSON object. It runs before jax takes the device's memory.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from data_pipelines import masking
from vjepa_jax import objectives
from vjepa_jax.bench_step import BATCHES, WARM_UP, made_up_stream
from vjepa_jax.config import ConfigError, RunConfig
from vjepa_jax.models.variants import encoder_size
from vjepa_jax.parallel.chips import peak_flops


def benchmark(run: RunConfig, script: str, repeats: int = 30) -> dict[str, Any]:
    """Runs `script` on the step of `run`, and counts its clips and FLOPs as ours are counted.

    Returns:
      What the script printed ("ms", "losses", "versions", ...) with "what", "shape", "dtype", "clips_per_s",
      "flops_per_clip" and, of a device whose peak is known, "mfu".

    Raises:
      ConfigError: the config has what the peer lacks, there is no such script, or it failed.
    """
    if not pathlib.Path(script).is_file():
        raise ConfigError(f"--peer {script}: there is no such file; ours is experiments/benchmarks/torch_step.py")
    plan = masking.make_plan(run)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "spec.json").write_text(json.dumps(spec(run) | {"repeats": repeats, "warm_up": WARM_UP}))
        for seed in range(BATCHES):
            write_batch(path / f"batch{seed}.npz", made_up_stream(run, plan, seed))
        command = [sys.executable, script, folder]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "0"})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ConfigError(f"--peer {script} failed with exit code {done.returncode}: {last}")
    return _record(run, plan, script, json.loads(done.stdout.strip().splitlines()[-1]))


def spec(run: RunConfig) -> dict[str, Any]:
    """The model in the words of transformers' VJEPA2Config, and the numbers of optimiser and target.

    Raises:
      ConfigError: the run is not a V-JEPA 2 of one stream, which is all that the peer computes.
    """
    model, size = run.model, encoder_size(run.model)
    published = model.position == "rope_tiled" and model.mlp == "gelu" and model.gelu == "erf" and not model.levels
    published = published and not model.cls_token and not model.registers and run.masks.policy == "uniform"
    published = published and model.predictor.kind == "joint" and model.predictor.mask_token_per_group
    if run.objective != "vjepa2" or run.all_streams or not published or run.data.size[0] != run.data.size[1]:
        raise ConfigError("--peer computes V-JEPA 2 as published, of one stream of square clips, and not this config")
    predictor, optim = model.predictor, run.optim
    return {
        "model": {
            "patch_size": model.patch_size,
            "crop_size": run.data.size[0],
            "frames_per_clip": run.data.num_frames,
            "tubelet_size": model.tubelet_size,
            "hidden_size": size.embed_dim,
            "num_attention_heads": size.num_heads,
            "num_hidden_layers": size.depth,
            "mlp_ratio": size.mlp_dim / size.embed_dim,
            "pred_hidden_size": predictor.embed_dim,
            "pred_num_attention_heads": predictor.num_heads,
            "pred_num_hidden_layers": predictor.depth,
            "pred_num_mask_tokens": predictor.num_mask_tokens,
            "pred_mlp_ratio": predictor.mlp_ratio,
        },
        "optim": {
            "lr": optim.lr,
            "beta1": optim.beta1,
            "beta2": optim.beta2,
            "eps": optim.eps,
            "weight_decay": optim.weight_decay,
        },
        "momentum": run.ema.start,
        "dtype": model.dtype,
        "checkpointing": model.remat == "full",
    }


def write_batch(path: pathlib.Path, batch: dict[str, Any]) -> None:
    """A batch as the script reads it: "video" uint8 [B, T, H, W, 3], and "context0", "target0", ... int32 [B, K]."""
    masks = {f"{key}{i}": ids for i, mask in enumerate(batch["masks"]) for key, ids in mask.items()}
    np.savez(path, video=batch["video"], **masks)


def _record(run: RunConfig, plan: masking.MaskPlan, script: str, printed: dict[str, Any]) -> dict[str, Any]:
    flops = sum(objectives.create(run).flops(plan.budgets).values())
    rate = 1e3 * run.batch_size / printed["ms"]
    record = {
        "what": f"step vjepa2 {run.model.variant}, peer {pathlib.Path(script).stem}",
        "shape": [run.batch_size, *(f"{c}+{m}" for c, m in plan.budgets)],
        "clip": [run.data.num_frames, *run.data.size],
        "dtype": run.model.dtype,
        "checkpointing": run.model.remat == "full",
        "clips_per_s": round(rate, 2),
        "flops_per_clip": flops,
    }
    if peak := peak_flops(printed.get("device", "")):
        record["mfu"] = round(flops * rate / peak, 4)
    return record | {key: round(value, 2) if isinstance(value, float) else value for key, value in printed.items()}
