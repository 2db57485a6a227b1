"""Stopping in an orderly way: a signal sets a flag, the loop saves and ends. Saving inside a handler would hang DDP."""

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, cast

import torch
from lightning_fabric import Fabric

_log = logging.getLogger(__name__)
# Windows has no SIGUSR1.
_SIGNALS = [name for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class StopRequest:
    """Context manager that turns the first signal into a request; a second one ends the process at once."""

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[str, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {name: signal.signal(getattr(signal, name), self._handle) for name in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._previous.items():
            signal.signal(getattr(signal, name), handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            os._exit(128 + number)
        self._asked = True
        _log.warning("signal %d: saving, then stopping; send it again to stop at once", number)

    def agreed(self, fabric: Fabric) -> bool:
        """Whether any process was asked to stop; all processes get the same answer."""
        if fabric.world_size == 1:
            return self._asked
        mine = torch.tensor(float(self._asked), device=fabric.device)
        return bool(cast(torch.Tensor, fabric.all_reduce(mine, reduce_op="sum")) > 0)
