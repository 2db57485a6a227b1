"""Data: where encoded images lie (`sources`), how they become pixels (`decode`), and batches of them."""
