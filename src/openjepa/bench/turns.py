"""The sides of a benchmark, each in a process of its own, that take turns: the machine's noise falls on all alike.

A side is made by a function that returns its answers, name -> callable; made in its own process, so that no side
changes another's threads or memory allocator.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from openjepa.errors import UserError

Answers = dict[str, Callable[[], Any]]
Maker = Callable[[], Answers]
"""Makes a side; a function of a module, or a partial of one, since it is sent to another process."""


class Sides:
    """Processes that answer questions, one at a time; a context manager that ends them.

    Args:
        makers: What makes each side, by name.
    """

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: dict[str, Connection] = {}
        for name, maker in makers.items():
            self._connections[name], child = context.Pipe()
            context.Process(target=serve, args=(maker, child), daemon=True).start()
            child.close()

    def __enter__(self) -> "Sides":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections.values():
            connection.close()

    def ask(self, side: str, question: str) -> Any:
        """A side's answer; the first one waits until the side is made.

        Raises:
            UserError: What the side found wrong with what it was given.
        """
        self._connections[side].send(question)
        answer = self._connections[side].recv()
        if isinstance(answer, UserError):
            raise answer
        return answer

    def take_turns(self, question: str, *, repeats: int) -> dict[str, list[Any]]:
        """Every side's answers to ``repeats`` questions, asked in turn, after one to warm up that is dropped."""
        answers: dict[str, list[Any]] = {side: [] for side in self._connections}
        for _ in range(repeats + 1):
            for side, given in answers.items():
                given.append(self.ask(side, question))
        return {side: given[1:] for side, given in answers.items()}


def serve(maker: Maker, parent: Connection) -> None:
    """Be one side, until the other end hangs up."""
    try:
        answers: Answers | UserError = maker()
    except UserError as error:
        answers = error
    while True:
        try:
            question = parent.recv()
        except EOFError:
            return
        parent.send(answers if isinstance(answers, UserError) else answers[question]())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def ratio(slower: Sequence[float], faster: Sequence[float]) -> str:
    """How many times faster, turn by turn: median and range of the ratios of seconds."""
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    return f"{statistics.median(ratios):.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})"


def memory() -> tuple[int, int]:
    """Memory that this process holds now, and the most that it has held, in bytes; 0 where the system does not say."""
    try:  # on Linux, what getrusage says a process inherits from the one that started it
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0, _peak_of_usage()
    sizes = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Vm"))
    now, peak = (1024 * int(sizes[name].split()[0]) for name in ("VmRSS", "VmHWM"))  # given in kB
    return now, peak


def peak_memory() -> int:
    """Most memory that this process has held, in bytes; 0 where the system does not say."""
    return memory()[1]


def _peak_of_usage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
