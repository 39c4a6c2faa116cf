"""Writes the 1,797 handwritten digits that ship with scikit-learn as files.

digits.csv has all of them, each with the part that it plays: training, validation or holdout.
request.json has the held-out images as a request for the scoring script.
holdout.json has the same request, and the digits that are right.
images/ has the same images as portable graymaps, a file each, for batch scoring.
"""

import csv
import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

HOLDOUT = 200
VALIDATION = 300


def main() -> None:
    digits = load_digits()
    parts = np.full(len(digits.data), "training", dtype=object)
    order = np.random.default_rng(0).permutation(len(parts))
    holdout = np.sort(order[:HOLDOUT])
    parts[holdout] = "holdout"
    parts[order[HOLDOUT : HOLDOUT + VALIDATION]] = "validation"
    with open("digits.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"pixel{number}" for number in range(64)), "digit", "part"])
        for image, digit, part in zip(digits.data, digits.target, parts, strict=True):
            writer.writerow([*(int(pixel) for pixel in image), int(digit), part])
    request = {"data": digits.data[holdout].tolist()}
    with open("request.json", "w") as file:
        json.dump(request, file)
    with open("holdout.json", "w") as file:
        json.dump({"request": request, "digits": digits.target[holdout].tolist()}, file)
    write_images(digits.images[holdout])
    print(f"digits.csv: {len(parts)} images; request.json, holdout.json and images/: {HOLDOUT} of them")


def write_images(images: np.ndarray) -> None:
    folder = Path("images")
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        np.savetxt(folder / f"{number:03}.pgm", image, fmt="%d", header="P2\n8 8\n16", comments="")


if __name__ == "__main__":
    main()
