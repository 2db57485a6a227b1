"""Settings of every test: one thread, no display, no deadline, a cache of its own."""

import os

# Before anything imports NumPy or PyTorch, and inherited by the commands that tests start. One thread,
# for sums in one order, and since test-sized tensors are slower on several.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
from hypothesis import settings

# A busy machine is no bug, so no deadline; in CI the same examples every time.
settings.register_profile("openjepa", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("openjepa")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Features and rendered scenes are kept for this session only, also by commands that tests start."""
    os.environ["OPENJEPA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
