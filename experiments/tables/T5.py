"""T5: what training costs: FLOPs of a clip by the analytic count, and what a run's log tells of its speed.

COMMAND: vjepa tables runs --table T5
HARDWARE: that of the runs
PUBLISHED NUMBER: none that stands on the same machine
MEASURED: not run
"""

from ml_collections import ConfigDict

COLUMNS = (
    ("GFLOP a training clip", "GFLOP"),
    ("clips a second", ""),
    ("MFU", "%"),
)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.table = ConfigDict()
    config.table.title = "Efficiency: cost and speed of pre-training"
    config.table.columns = tuple(
        {"title": metric, "benchmark": "training", "metric": metric, "unit": unit, "work": "none"}
        for metric, unit in COLUMNS
    )
    return config
