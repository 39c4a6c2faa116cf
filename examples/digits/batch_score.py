"""Scores files with an image of 8 × 8 pixels each, in mini-batches: the script of a batch deployment."""

import os
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

model = None


def init() -> None:
    """Once a worker, at its start."""
    global model
    model = joblib.load(Path(os.environ["AZUREML_MODEL_DIR"]) / "model.joblib")


def run(mini_batch: list[str]) -> pd.DataFrame:
    """Once a mini-batch: paths of files. Each row that comes back is one file that was scored."""
    images = np.stack([pixels(Path(path)) for path in mini_batch])
    return pd.DataFrame({"file": [Path(path).name for path in mini_batch], "digit": model.predict(images)})


def pixels(path: Path) -> np.ndarray:
    """The 64 pixels of a portable graymap, from 0 to 1."""
    return np.loadtxt(path, skiprows=3).ravel() / 16
