"""Several processes as one: what the first does alone, and what becomes of the others when it fails."""

from collections.abc import Callable

from lightning_fabric import Fabric

from openjepa.errors import FirstProcessFailed


def by_first(fabric: Fabric, work: Callable[[], object]) -> None:
    """Let the first process do something while the others wait; where it fails, none of them goes on.

    Args:
        fabric: The processes.
        work: Called in the first one.

    Raises:
        FirstProcessFailed: In the others, where it raised; in the first its own error.
    """
    done = False
    try:
        if fabric.global_rank == 0:
            work()
            done = True
    finally:
        done = bool(fabric.broadcast(done))
    if not done:
        raise FirstProcessFailed
