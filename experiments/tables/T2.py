"""T2: dense features, by propagated masks and linear probes.

COMMAND: vjepa tables runs --table T2        vjepa tables --plan T2 says what would fill it
HARDWARE: none to print it; `--plan` tells the device-hours where they can be counted
PUBLISHED NUMBER: in the table, each with its source (vjepa_jax/evals/published.csv)
MEASURED: not run

Mask propagation has several published protocols, whose numbers are not comparable: each has a column of its own.
"""

from ml_collections import ConfigDict

V21, DINO, DINOV3 = (f"label propagation, {name}" for name in ("V-JEPA 2.1", "DINO", "as DINOv3"))


def davis(title: str, metric: str, protocol: str, config: str = "") -> dict:
    return {
        "title": f"DAVIS-2017 J&F, {title}",
        "benchmark": "davis2017",
        "metric": metric,
        "published": (("davis2017", "J&F", protocol),) if protocol else (),
        "data": ("davis2017",),
        "config": config,
    }


def youtube(title: str, metric: str, protocol: str, variant: str) -> dict:
    return {
        "title": f"YouTube-VOS J&F, local split, {title}",
        "benchmark": "youtube_vos",
        "metric": metric,
        "published": (("youtube_vos", "J&F", protocol),) if protocol else (),
        "data": ("youtube_vos",),
        "config": f"experiments/evals/youtube_vos.py:{variant}",
    }


def linear(title: str, name: str, metric: str, task: str, unit: str) -> dict:
    return {
        "title": f"{title} {metric}",
        "benchmark": name,
        "metric": f"{metric}*",
        "published": ((name, metric, f"linear {task} probe"),),
        "unit": unit,
        "lower_is_better": metric == "RMSE",
        "data": (name,),
        "config": f"experiments/evals/dense.py:{name}",
        "options": f"--config.{task}.path={name}",
        "work": task,
    }


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.table = ConfigDict()
    config.table.title = "Dense features: mask propagation, linear segmentation and depth"
    config.table.columns = (
        davis("V-JEPA 2.1's search", "J&F, as V-JEPA 2.1", V21, "experiments/evals/davis.py:vjepa21"),
        davis("DINO protocol", "J&F, DINO protocol", DINO, "experiments/evals/davis.py:dino"),
        davis("CRW protocol", "J&F, CRW protocol", "", "experiments/evals/davis.py:crw"),
        davis("as DINOv3", "J&F, as DINOv3", DINOV3),
        youtube("V-JEPA 2.1's search", "J&F, as V-JEPA 2.1", V21, "vjepa21"),
        youtube("DINO protocol", "J&F, DINO protocol", "", "dino"),
        linear("ADE20K", "ade20k", "mIoU", "segmentation", "%"),
        linear("NYUv2", "nyuv2", "RMSE", "depth", "m"),
    )
    config.table.models = (
        ("V-JEPA 2 ViT-L", ""),
        ("V-JEPA 2 ViT-g 384", ""),
        ("V-JEPA 2.1 ViT-g", ""),
        ("V-JEPA 2.1 ViT-G", ""),
    )
    return config
