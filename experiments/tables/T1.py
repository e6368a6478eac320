"""T1: classification of videos and images, frozen attentive probe and fine-tuning.

COMMAND: vjepa tables runs --table T1        vjepa tables --plan T1 says what would fill it
HARDWARE: none to print it; `--plan` tells the device-hours of each cell
PUBLISHED NUMBER: in the table, each with its source (vjepa_jax/evals/published.csv)
MEASURED: not run
"""

from ml_collections import ConfigDict

MODELS = (
    ("V-JEPA 2 ViT-L", "vitl"),
    ("V-JEPA 2 ViT-H", "vith"),
    ("V-JEPA 2 ViT-g", "vitg"),
    ("V-JEPA 2 ViT-g 384", "vitg_384"),
)

FROZEN = "frozen, attentive 4 blocks, best head on val"
PROBES = (("K400", "k400"), ("SSv2", "ssv2"), ("Diving48", "diving48"), ("Jester", "jester"), ("COIN", "coin"))
FINE_TUNED = (("UCF101, fine-tuned", "ucf101"), ("HMDB51, fine-tuned", "hmdb51"))


def probe(title: str, name: str) -> dict:
    return {
        "title": title,
        "benchmark": name,
        "metric": "top-1, best head on test",
        "published": ((name, "top-1", FROZEN),),
        "config": f"experiments/evals/{name}.py",
        "data": (name,),
        "work": "probe",
    }


def fine_tuned(title: str, name: str) -> dict:
    protocols = ("fine-tuned, no extra data", "fine-tuned, pre-trained on K400")
    return {
        "title": title,
        "benchmark": name,
        "metric": "top-1, fine-tuned",
        "published": tuple((name, "top-1", protocol) for protocol in protocols),
        "config": f"experiments/evals/finetune.py:{name}",
        "data": (name,),
        "work": "finetune",
    }


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.table = ConfigDict()
    config.table.title = (
        "Classification: frozen attentive probe (4 blocks, best head on the validation set), top-1 in %"
    )
    columns = [probe(*names) for names in (*PROBES, ("ImageNet", "imagenet"))]
    config.table.columns = tuple(columns + [fine_tuned(*names) for names in FINE_TUNED])
    config.table.models = MODELS
    return config
