"""Fine-tuning on UCF101 or HMDB51 by VideoMAE's recipe, one official split a run; the mean of the three is reported.

COMMAND: vjepa eval --config experiments/evals/finetune.py:ucf101 --checkpoint RUN --config.finetune.path=FILE
HARDWARE: one GPU of 80 GB: lower micro_batch until it fits
PUBLISHED NUMBER: vjepa_jax/evals/published.csv, by what an encoder was pre-trained on: numbers of K400-pre-trained and
   supervised encoders are not comparable with those that saw the data set's own videos alone
MEASURED: not run

FILE is a manifest with the columns path,label,split (train, test) of split 1, 2 or 3.
"""

from ml_collections import ConfigDict

VARIANTS = ("ucf101", "hmdb51")


def get_config(arg: str = "ucf101") -> ConfigDict:
    config = ConfigDict()
    config.finetune = ConfigDict({"path": f"data/{arg}/split1.csv", "name": arg, "micro_batch": 32})
    return config
