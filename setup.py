"""Package metadata; ``constraints.txt`` pins the versions that are tested."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
RUNTIMES = ["onnx>=1.16", "onnxruntime>=1.19", "openvino>=2025.1"]  # INT4 and opset 21
NCNN = "ncnn>=1.0.20230816"
SPANDREL = "spandrel>=0.4.2,<0.5"  # recognises networks by their weights


def version() -> str:
    """The version that the package itself states."""
    lines = (ROOT / "adabm_basicsr" / "version.py").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("__version__"))


setup(
    name="adabm-basicsr",
    version=version(),
    description="Adaptive quantization of super-resolution networks (AdaBM), a plugin for BasicSR",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",  # BasicSR 1.4.2 doesn't build on Python 3.13
    # The option files are the repository's own, installed as package data.
    packages=[*find_packages(include=["adabm_basicsr*"]), "adabm_basicsr.options_files"],
    package_dir={"adabm_basicsr.options_files": "options"},
    package_data={
        "adabm_basicsr": ["py.typed"],
        "adabm_basicsr.demo": ["*.pth"],
        "adabm_basicsr.options": ["schema.json"],
        "adabm_basicsr.report": ["templates/*"],
        "adabm_basicsr.options_files": ["*/*.yml", "*/*/*.yml"],
    },
    install_requires=[
        "basicsr==1.4.2",
        "filelock>=3.12",  # one run at a time in a folder
        "imagesize>=2",  # before an image is decoded
        "jinja2>=3.1",  # the report's page
        "lmdb",
        "matplotlib>=3.7",
        "numpy",
        "opencv-python",
        "pydantic>=2.9,<3",  # the table of options
        "pyyaml",
        "safetensors>=0.4",  # packed files
        "scikit-image>=0.20",  # the demo's photographs
        "setuptools; python_version >= '3.12'",  # BasicSR imports distutils
        "tabulate>=0.9",
        "tifffile",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm",
    ],
    extras_require={
        "benchmark": [*RUNTIMES, NCNN, "nncf>=2.14", "torchao>=0.15"],
        "lpips": ["lpips>=0.1.4"],
        "ncnn": [NCNN, RUNTIMES[0]],
        "runtimes": RUNTIMES,
        "spandrel": [SPANDREL],
        "test": [
            "hypothesis",
            "import-linter>=2.3",
            "jsonschema>=4.18",  # option files against the schema
            "mypy>=1.15",
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "ruff",
            "selenium",
            "types-PyYAML",
            "types-tabulate",
            *RUNTIMES,
            NCNN,
            SPANDREL,
        ],
    },
    entry_points={"console_scripts": ["adabm-basicsr=adabm_basicsr.commands.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
