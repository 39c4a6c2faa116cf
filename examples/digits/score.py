"""Answers `{"data": [[64 numbers from 0 to 16], …]}` with the digits."""

import json
import os
from pathlib import Path

import joblib
import numpy as np

model = None


def init() -> None:
    """Once a worker, at its start."""
    global model
    model = joblib.load(Path(os.environ["AZUREML_MODEL_DIR"]) / "model.joblib")


def run(raw_data: str) -> list[int]:
    """Once a request."""
    images = np.asarray(json.loads(raw_data)["data"], dtype=float) / 16
    return [int(digit) for digit in model.predict(images)]
