"""Lets a test kill the process at a named place, as a power cut would: `OPENJEPA_FAILPOINT=save-model`."""

import os
import signal


def failpoint(name: str) -> None:
    """Die here, without any clean-up, if the environment asks for it."""
    if os.environ.get("OPENJEPA_FAILPOINT") == name:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
