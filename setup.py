"""Packaging: `pip install .`, or `pip install -e .[dev]` to work on it."""

from setuptools import find_packages
from setuptools import setup

setup(
    name="bert_pruning",
    version="0.1.0",
    description=(
        "Fine-tune, prune while distilling, and evaluate BERT in TensorFlow."
    ),
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["bert_pruning", "bert_pruning.*"]),
    entry_points={
        "console_scripts": ["bert-pruning = bert_pruning.__main__:main"]
    },
    install_requires=[
        "absl-py",
        # Runs TFLite files; TensorFlow's own interpreter is going.
        "ai-edge-litert",
        # tensorflow-datasets imports it without asking for it.
        "importlib_resources",
        "keras-hub==0.32.*",
        # keras-hub by its former name, for presets made with it.
        "keras-nlp==0.32.*",
        "matplotlib",
        "ml_dtypes",
        "numpy",
        "pyarrow",
        "safetensors",
        "scikit-learn",
        "scipy",
        "tensorboard==2.21.*",
        "tensorflow==2.21.*",
        "tensorflow-datasets==4.9.10",
        "tensorflow-model-optimization==0.8.1",
        "tensorflow-text==2.21.1",
        "tf-keras==2.21.*",
        "tqdm",
    ],
    extras_require={
        # The CUDA libraries, for a machine with an NVIDIA GPU.
        "gpu": ["tensorflow[and-cuda]==2.21.*"],
        # To make pre-training examples of text.
        "pretraining": ["apache-beam", "sentencex"],
        # To compare with, and to record the tests' golden values.
        "peers": [
            *("onnx", "onnxruntime", "onnxscript"),
            *("tokenizers", "torch==2.13.0", "transformers"),
        ],
        # The pinned ruff formats alike everywhere.
        "dev": ["pre-commit", "pytest>=8", "pytest-xdist", "ruff==0.17.6"],
    },
)
