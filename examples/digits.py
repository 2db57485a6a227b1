"""Write scikit-learn's handwritten digits as PNG files in class folders, a data set that needs no download.

From the root of the project:

    python examples/digits.py runs/digits     # runs/digits/train/7/0042.png, runs/digits/test/…
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 32  # pixels; the originals have 8
NUM_TEST = 500


def main(folder: Path) -> None:
    """Write 1,297 images to train/ and 500 to test/; what is there already is written again, the same."""
    digits = load_digits()
    levels = (digits.images * (255 / digits.images.max())).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(levels))
    for place, number in enumerate(order):
        split = "test" if place < NUM_TEST else "train"
        path = folder / split / str(digits.target[number]) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels[number]).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
