"""T7: health of the features at the end of training.

COMMAND: vjepa tables runs --table T7
HARDWARE: that of the runs
PUBLISHED NUMBER: none
MEASURED: not run
"""

from ml_collections import ConfigDict

METRICS = ("RankMe", "RankMe, at most", "feature std")


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.table = ConfigDict()
    config.table.title = "Health of the features"
    config.table.columns = tuple(
        {"title": metric, "benchmark": "training", "metric": metric, "unit": "", "work": "none"} for metric in METRICS
    )
    return config
