"""T3: localisation in time and anticipation.

COMMAND: vjepa tables runs --table T3        vjepa tables --plan T3 says what would fill it
HARDWARE: none to print it; `--plan` tells the device-hours where they can be counted
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


def get_config() -> ConfigDict:
    gebd = ("kinetics_gebd", "F1@0.05", "as its authors")
    thumos = ("thumos14", "mAP@0.3:0.7", "ActionFormer")
    config = ConfigDict()
    config.table = ConfigDict()
    config.table.title = "Localisation in time and anticipation"
    config.table.columns = (
        {
            "title": "Kinetics-GEBD F1@0.05",
            "benchmark": "kinetics_gebd",
            "metric": "F1@0.05*",
            "published": (gebd,),
            "unit": "",
            "data": ("kinetics_gebd", "k400"),
            "config": "experiments/evals/gebd.py:kinetics",
        },
        {
            "title": "THUMOS14 mAP@0.3:0.7",
            "benchmark": "thumos14",
            "metric": "mAP@0.3:0.7",
            "published": (thumos,),
            "data": ("thumos14",),
            "config": "experiments/evals/action_localization.py:thumos14",
        },
        *(
            {
                "title": f"EPIC-Kitchens-100 {what} recall@5",
                "benchmark": "ek100",
                "metric": f"{what} recall@5*",
                "published": (("ek100", f"{what} recall@5", FROZEN),),
                "data": ("ek100",),
                # 20 epochs over the training segments, 32 frames each; the heads of the probe come on top
                "work": "features" if what == "action" else "none",  # one evaluation gives all three
                "clips": (20.0, 1.0),
                "frames": 32,
            }
            for what in ("action", "verb", "noun")
        ),
    )
    config.table.models = MODELS
    return config
