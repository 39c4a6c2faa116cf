"""Trains a small neural network on handwritten digits, epoch by epoch."""

import os
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.neural_network import MLPClassifier

import stellwerk

EPOCHS = int(os.environ.get("EPOCHS", "30"))
CLASSES = np.arange(10)


def load(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images with values from 0 to 1, and their digits."""
    table = pd.read_csv(folder / "digits.csv")
    table = table[table["part"] == part]
    return table.drop(columns=["digit", "part"]).to_numpy(dtype=float) / 16, table["digit"].to_numpy()


def curve(values: list[float], path: Path) -> None:
    """The accuracy by epoch as an SVG, drawn by hand: no plotting package needed."""
    width, height, margin = 640, 320, 40
    across = (width - 2 * margin) / max(1, len(values) - 1)
    points = " ".join(
        f"{margin + index * across:.1f},{height - margin - value * (height - 2 * margin):.1f}"
        for index, value in enumerate(values)
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<path d="M{margin},{margin}V{height - margin}H{width - margin}" fill="none" stroke="gray"/>'
        f'<polyline points="{points}" fill="none" stroke="steelblue" stroke-width="2"/>'
        f'<text x="{margin}" y="{margin - 12}" font-family="sans-serif" font-size="14">'
        f"validation accuracy by epoch, last {values[-1]:.3f}</text></svg>"
    )


def main() -> None:
    run = stellwerk.current_run()
    data = run.input("digits")
    images, digits = load(data, "training")
    validation = load(data, "validation")
    order = np.random.default_rng(1)
    params = {"hidden_layer_sizes": (64, 64), "learning_rate_init": 0.003}
    run.log_params({**params, "epochs": EPOCHS})
    model = MLPClassifier(**params, random_state=0)
    accuracies: list[float] = []
    for epoch in range(EPOCHS):
        for batch in np.array_split(order.permutation(len(images)), len(images) // 64):
            model.partial_fit(images[batch], digits[batch], classes=CLASSES)
        loss = log_loss(digits, model.predict_proba(images), labels=CLASSES)
        accuracies.append(float(model.score(*validation)))
        run.log_metrics({"loss": loss, "accuracy": accuracies[-1]}, step=epoch)
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracies[-1]:.4f}")
    matrix = confusion_matrix(validation[1], model.predict(validation[0]), labels=CLASSES)
    run.log_confusion_matrix("validation", {"class_labels": CLASSES, "matrix": matrix})
    joblib.dump(model, run.outputs / "model.joblib")
    curve(accuracies, run.outputs / "curve.svg")


if __name__ == "__main__":
    main()
