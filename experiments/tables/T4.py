"""T4: world models: violation of expectation, forecasts of features, planning.

COMMAND: vjepa tables runs --table T4        vjepa tables --plan T4 says what would fill it
HARDWARE: none to print it; `--plan` tells the device-hours where they can be counted
PUBLISHED NUMBER: in the table, each with its source (vjepa_jax/evals/published.csv)
MEASURED: not run

Skill and retrieval are of the embedded world and nobody published them. The published violation numbers choose the best
context for each property on the test videos; ours stand beside them chosen in the same way.
"""

from ml_collections import ConfigDict

PATH = "--config.surprise.path=data/{}"
BEST = "best skip, window and context per property"


def violation(title: str, ours: str, name: str, options: str = "") -> dict:
    return {
        "title": f"{title} relative accuracy",
        "benchmark": ours,
        "metric": "relative accuracy, best context",
        "published": ((name, "relative accuracy", BEST),),
        "config": f"experiments/evals/surprise.py:{name if options else 'world'}",
        "options": options,
        "data": (name,),
    }


def motion(title: str, metric: str, unit: str) -> dict:
    return {
        "title": title,
        "benchmark": "world, motion",
        "metric": metric,
        "unit": unit,
        "config": "experiments/evals/world_suite.py",
        "data": ("world",),
        "work": "none",
    }


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.table = ConfigDict()
    config.table.title = "World models: violation of expectation, forecasts, planning"
    config.table.columns = (
        violation("IntPhys", "IntPhys", "intphys", PATH.format("intphys")),
        violation("GRASP", "GRASP", "grasp", PATH.format("grasp")),
        violation("InfLevel", "InfLevel", "inflevel", PATH.format("inflevel")),
        violation("embedded world", "world, violations", "world") | {"published": (), "work": "none"},
        motion("skill against persistence, 2 tubelets", "skill against persistence at 2 tubelets", ""),
        motion("retrieval top-1 of 64, 2 tubelets", "retrieval top-1 of 64 at 2 tubelets", "%"),
        motion("position, readout-normalised, 2 tubelets", "position, readout-normalised at 2 tubelets", ""),
        {
            "title": "Push-T success",
            "benchmark": "pusht",
            "metric": "success",
            "published": (("planning, PushT", "success", "stable-worldmodel"),),
            "data": ("pusht",),
        },
    )
    config.table.models = (("V-JEPA 1 ViT-L", ""), ("V-JEPA 1 ViT-H", ""), ("V-JEPA 2 ViT-H", ""))
    return config
