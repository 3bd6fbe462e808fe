"""Packaging. What predicting needs is the base; everything else is an extra (README.md, "Install")."""

import re
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "pixel_align/__init__.py").read_text("utf-8"), re.MULTILINE)
assert VERSION is not None, 'pixel_align/__init__.py has no line __version__ = "..."'

BASE = [
    "flax>=0.12.8,<0.13",
    "gin-config>=0.5.0",
    "jax>=0.10.2,<0.13",
    "ml-collections>=1.1",
    "numpy>=2.1",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=11",
    "rich>=13.9",
    "sentencepiece>=0.2.3",
    "typer>=0.15",
]

EXTRAS = {
    # Building data sets, training, evaluating. tensorflow-text asks for the full tensorflow beside tensorflow-cpu:
    # uv leaves it out by [tool.uv] in pyproject.toml, pip installs both, which costs 0.6 GB and does no harm.
    "data": [
        "clu>=0.0.12",
        "pycocotools>=2.0.11",  # masks
        "seqio==0.0.20",
        "tensorboard>=2.20,<2.22",
        "tensorflow-cpu>=2.21,<2.22",
        "tensorflow-datasets>=4.9.10",
        "tensorflow-text>=2.21,<2.22",
    ],
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    "convert": ["msgpack", "safetensors>=0.8", "tensorstore>=0.1.86"],
    "export": ["orbax-export>=0.0.8"],
    # pycocoevalcap carries the tables of METEOR 1.5, which stems as Snowball 2 does; its Java is not needed.
    "eval": ["pycocoevalcap>=1.2", "pycocotools>=2.0.11", "snowballstemmer>=2.2,<3"],
    "plots": ["matplotlib>=3.9"],
    "dev": [
        "import-linter>=2.5",
        "mypy>=2.4",
        "pycocotools>=2.0.11",
        "pytest>=9",
        "pytest-xdist>=3.8",  # the tests on all cores
        "ruff>=0.17,<0.18",
        "setuptools>=77",
        "snowballstemmer>=2.2,<3",
    ],
}

setuptools.setup(
    name="pixel-align",
    version=VERSION[1],
    description="Vision and language models whose words have places: say a sentence, point at what each word means.",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=setuptools.find_packages(include=["pixel_align", "pixel_align.*", "data_pipelines", "data_pipelines.*"]),
    package_data={"pixel_align": ["py.typed"], "data_pipelines": ["py.typed"]},
    python_requires=">=3.11,<3.14",
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["pixel-align = pixel_align.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
