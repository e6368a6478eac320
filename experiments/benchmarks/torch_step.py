"""The training step of V-JEPA 2 in PyTorch, made of the layers of `transformers`: the peer of `vjepa bench step`.

COMMAND: vjepa bench step --config C --peer experiments/benchmarks/torch_step.py
   which runs `python experiments/benchmarks/torch_step.py FOLDER` with a folder of spec.json and batch0.npz, ...
   in it, and reads the JSON object that it prints

What makes it fast on a GPU: torch.compile of every layer (of whole encoders it took over 5 minutes), bf16 autocast,
SDPA, tokens dropped before the encoder, no activation checkpointing (unless spec["checkpointing"]), fused AdamW, and
one foreach update of the target.
It computes what our step does: tests/peers/test_torch_step.py compares losses.
"""

import copy
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import VJEPA2Config, VJEPA2Model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Masks = list[tuple[torch.Tensor, torch.Tensor]]


class TorchStep:
    """Model, target and optimiser. A call with (uint8 [B, T, H, W, 3], [(context, target) ids int64, ...]) takes one
    step and returns the loss, a tensor."""

    def __init__(self, spec: dict[str, Any], device: str, model: VJEPA2Model | None = None):
        self.spec, self.device = spec, device
        config = VJEPA2Config(**spec["model"], attn_implementation="sdpa")
        model = (model or VJEPA2Model(config)).to(device).train()
        self.encoder, self.predictor = model.encoder, model.predictor
        if spec["checkpointing"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.target = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        trained = [p for part in (self.encoder, self.predictor) for p in part.parameters()]
        decayed = [p for p in trained if p.ndim > 1]
        rest = [p for p in trained if p.ndim <= 1]
        optim = spec["optim"]
        groups = [{"params": decayed, "weight_decay": optim["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=optim["lr"], betas=(optim["beta1"], optim["beta2"]), eps=optim["eps"], fused=device == "cuda"
        )
        if device == "cuda":
            for layer in (*self.encoder.layer, *self.target.layer, *self.predictor.layer):
                layer.compile(dynamic=False)

    def __call__(self, video: torch.Tensor, masks: Masks) -> torch.Tensor:
        mean, std = (torch.tensor(values, device=self.device) for values in (MEAN, STD))
        pixels = ((video.to(self.device) / 255.0 - mean) / std).permute(0, 1, 4, 2, 3).contiguous()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.spec["dtype"] == "bfloat16"):
            with torch.no_grad():
                features = self._encode(self.target, pixels, None)
                features = F.layer_norm(features.float(), features.shape[-1:])
            losses = []
            for index, (context, target) in enumerate(masks):
                prediction = self._predict(self._encode(self.encoder, pixels, context), context, target, index)
                losses.append((prediction.float() - _gather(features, target)).abs().mean())
        loss = torch.stack(losses).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        momentum, old, new = self.spec["momentum"], self.target.parameters(), self.encoder.parameters()
        with torch.no_grad():
            torch._foreach_lerp_(list(old), list(new), 1.0 - momentum)
        return loss.detach()

    def _encode(self, encoder: torch.nn.Module, pixels: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        hidden = encoder.embeddings(pixels)
        if ids is not None:
            hidden = _gather(hidden, ids)
        for layer in encoder.layer:
            hidden = layer(hidden, ids)[0]
        return encoder.layernorm(hidden)

    def _predict(self, hidden: torch.Tensor, context: torch.Tensor, target: torch.Tensor, index: int) -> torch.Tensor:
        """VJEPA2Predictor.forward without its sorting, which changes nothing."""
        predictor = self.predictor
        hidden = predictor.embeddings.predictor_embeddings(hidden)
        tokens = predictor.embeddings.mask_tokens
        queries = tokens[index % len(tokens)].to(hidden.dtype).expand(*target.shape, -1)
        hidden, ids = torch.cat([hidden, queries], dim=1), torch.cat([context, target], dim=1)
        for layer in predictor.layer:
            hidden = layer(hidden, ids)[0]
        return predictor.proj(predictor.layernorm(hidden[:, context.shape[1] :]))


def _gather(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.gather(x, 1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def read_batch(path: pathlib.Path, device: str) -> tuple[torch.Tensor, Masks]:
    """A batch as `vjepa bench step` writes it: "video", "context0", "target0", "context1", ..."""
    with np.load(path) as arrays:
        groups = sum(name.startswith("context") for name in arrays)
        ids = lambda name: torch.from_numpy(arrays[name].astype(np.int64)).to(device)
        masks = [(ids(f"context{i}"), ids(f"target{i}")) for i in range(groups)]
        return torch.from_numpy(arrays["video"]).to(device), masks


def main(folder: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = json.loads((pathlib.Path(folder) / "spec.json").read_text())
    batches = [read_batch(path, device) for path in sorted(pathlib.Path(folder).glob("batch*.npz"))]
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.cache_size_limit = 64  # the target, and each mask group, has shapes of its own
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    step = TorchStep(spec, device)
    start = time.perf_counter()
    step(*batches[0])
    synchronize()
    first, losses, ends, running = time.perf_counter() - start, [], [], None
    for i in range(spec["warm_up"] + spec["repeats"] + 1):
        loss = step(*batches[i % len(batches)])
        if running is not None:  # a step is waited for while the next one is sent off
            losses.append(running.item())
            ends.append(time.perf_counter())
        running = loss
    times = np.diff(ends)[spec["warm_up"] - 1 :]
    record = {
        "ms": 1e3 * float(np.median(times)),
        "ms_min": 1e3 * float(min(times)),
        "ms_max": 1e3 * float(max(times)),
        "first_step_s": first,
        "losses": [losses[0], losses[-1]],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if device == "cuda":
        record["device"] = torch.cuda.get_device_name()
        record["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
