"""T6: streaming: latency, streams at 30 frames a second, stability of features, loss by int8.

COMMAND: vjepa tables runs --table T6
HARDWARE: one accelerator
PUBLISHED NUMBER: none
MEASURED: not run
"""

from ml_collections import ConfigDict

COLUMNS = (
    ("latency p50", "ms", True),
    ("latency p99", "ms", True),
    ("streams at 30 fps", "", False),
    ("feature jitter", "", True),
    ("int8, change of the probe", "%", False),
)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.table = ConfigDict()
    config.table.title = "Streaming"
    config.table.columns = tuple(
        {"title": f"{metric}{', ' + unit if unit else ''}", "benchmark": "streaming", "metric": metric, "unit": unit}
        | {"lower_is_better": lower, "work": "unknown"}
        for metric, unit, lower in COLUMNS
    )
    return config
