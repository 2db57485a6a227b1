"""The plan of `--preset auto` at its corners: thirty kinds of images, budgets and machines, each then run for a minute.

    python benchmarks/corners.py PHOTOS --out runs/corners       # some forty minutes

PHOTOS is a folder of photographs, from which images of every size and kind are cut. Each corner is one `openjepa
pretrain DATA --dry-run`, whose settings are kept, and one `openjepa pretrain DATA --config THEM` that has one minute
instead of the budget. A corner that went well is not run again. The table is written to `OUT/corners.md`;
the exit status is 1 where a command failed.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

MOST_FILES = 256  # that differ; further ones are links to them
SLOW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
_EXPECTED = re.compile(
    r"auto: (\w+), (\d+ × \d+) patches of (\d+) px, batch (\d+).*; expects about ([\d,+ ]+) steps"
)


@dataclass(frozen=True)
class Corner:
    """One call of `openjepa pretrain`."""

    height: int
    width: int
    number: int
    budget: tuple[str, str]
    channels: int = 3
    cores: int = 1
    slow: bool = False
    """In float32, without the instructions that are newer than AVX2."""
    method: str | None = None

    @property
    def data(self) -> str:
        """Name of its images."""
        return f"{self.height}x{self.width}x{self.channels}-{self.number}"

    @property
    def name(self) -> str:
        """Name of its files."""
        machine = f"{self.cores}-{'slow' if self.slow else 'fast'}"
        return "-".join([self.data, "".join(self.budget).lstrip("-"), machine, self.method or "ijepa"])


def minutes(number: float) -> tuple[str, str]:
    """A budget in minutes."""
    return "--max-minutes", f"{number:g}"


def corners() -> Iterator[Corner]:
    """All of them: every size, number and budget on both kinds of machine, and the rarer ones once."""
    for slow in (False, True):
        for number in (2, 60):
            for side, count in ((28, 500), (32, 50_000), (64, 20_000), (224, 5_500), (512, 500)):
                yield Corner(side, side, count, minutes(number), cores=1 if slow else 2, slow=slow)
    yield Corner(224, 224, 1_000_000, minutes(20), cores=2)
    yield Corner(32, 32, 1_000_000, minutes(2), slow=True)
    yield Corner(128, 171, 1_800, minutes(20), cores=2)
    yield Corner(512, 96, 500, minutes(5), slow=True)
    yield Corner(28, 28, 60_000, minutes(5), channels=1, slow=True)
    yield Corner(96, 96, 2_000, minutes(5), channels=4)
    yield Corner(64, 64, 1_000, minutes(2), channels=2, slow=True)
    yield Corner(224, 224, 5_500, ("--steps", "300"), slow=True)
    yield Corner(112, 112, 1_800, ("--epochs", "40"))
    yield Corner(112, 112, 1_800, minutes(5), method="mae")


def make_images(photographs: list[Path], corner: Corner, folder: Path) -> None:
    """Cut a corner's images out of photographs, and link to them until there are enough.

    Args:
        photographs: Files.
        corner: Says how large, how many, and of how many channels.
        folder: Made here; one that is there is taken as it is.
    """
    if folder.is_dir():
        return
    draft = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)  # of a call that was cut off
    draft.mkdir(parents=True)
    rng = np.random.default_rng(0)
    size = (corner.width, corner.height)
    made = []
    for index in range(min(corner.number, MOST_FILES)):
        with Image.open(photographs[index % len(photographs)]) as photograph:
            side = min(photograph.size)
            left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
            pixels = photograph.convert("RGB").crop((left, top, left + side, top + side)).resize(size)
        made.append(_save(np.asarray(pixels), corner.channels, draft / f"{index:07d}"))
    for index in range(len(made), corner.number):
        original = made[index % len(made)]
        os.link(original, draft / f"{index:07d}{original.suffix}")
    draft.rename(folder)


def _save(pixels: NDArray[np.uint8], channels: int, stem: Path) -> Path:
    """Write RGB pixels as a file of so many channels: grey PNG, JPEG, or the first of R, G, B, R as .npy or TIFF."""
    if channels == 1:
        Image.fromarray(pixels).convert("L").save(path := stem.with_suffix(".png"))
    elif channels == 3:
        Image.fromarray(pixels).save(path := stem.with_suffix(".jpg"), quality=90)
    elif channels == 2:
        np.save(path := stem.with_suffix(".npy"), pixels[..., :2])
    else:
        tifffile.imwrite(
            path := stem.with_suffix(".tif"), pixels[..., [0, 1, 2, 0]], photometric="minisblack"
        )
    return path


def run(command: list[str], corner: Corner, *, out: Path, told: Path | None = None) -> tuple[int, int]:
    """Run a command on a corner's machine.

    Args:
        command: What to run.
        corner: Says which cores and instructions it may use.
        out: File for what it prints.
        told: File for its messages; None: the same.

    Returns:
        Its exit status, and the most memory in bytes that it held.
    """
    environment = {**os.environ, **(SLOW if corner.slow else {})}
    cores = set(sorted(os.sched_getaffinity(0))[: corner.cores])
    pin: Callable[[], None] = lambda: os.sched_setaffinity(0, cores)  # noqa: E731
    with out.open("w") as printed, told.open("w") if told else nullcontext(STDOUT) as messages:
        process = Popen(command, stdout=printed, stderr=messages, env=environment, preexec_fn=pin)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, 1024 * usage.ru_maxrss


def judge(corner: Corner, data: Path, openjepa: list[str], out: Path) -> dict[str, Any]:
    """Plan a corner, then run its plan for a minute; what came of it, kept beside the run."""
    record, plan, told, printed = (
        out / f"{corner.name}.{kind}" for kind in ("json", "yaml", "log", "run.log")
    )
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if not found["status"]:
            return found
    asked = ["--method", corner.method] if corner.method else []
    asked += ["--set", "runtime.precision=float32"] if corner.slow else []
    start = time.perf_counter()
    command = [*openjepa, "pretrain", str(data), "--dry-run", *corner.budget, *asked]
    status, peak = run(command, corner, out=plan, told=told)
    seconds = time.perf_counter() - start
    said = told.read_text(encoding="utf-8")
    expected = _EXPECTED.search(" ".join(said.split()))
    if not status:
        command = [*openjepa, "pretrain", str(data), "--config", str(plan), "--max-minutes", "1"]
        status, peak = run([*command, "--out", str(out / corner.name), "--overwrite"], corner, out=printed)
        said = printed.read_text(encoding="utf-8")
    result: dict[str, Any] = {
        "corner": asdict(corner), "status": status, "seconds_to_plan": round(seconds, 1), "peak_bytes": peak,
        "plan": expected.groups() if expected else None, "said": said[-2000:] if status else "",
    }  # fmt: skip
    record.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def table(results: Sequence[dict[str, Any]]) -> str:
    """What was planned at each corner and what it took, as Markdown."""
    lines = [
        "| images | pixels | channels | cores | instructions | budget | method | plan | batch | steps expected "
        "| s to plan | peak, GB | exit |",
        "|---" * 13 + "|",
    ]
    for found in results:
        corner = Corner(**found["corner"])
        preset, grid, patch, batch, steps = found["plan"] or ("–",) * 5
        facts = (
            f"{corner.number:,}", f"{corner.height} × {corner.width}", corner.channels, corner.cores,
            "AVX2, float32" if corner.slow else "all", " ".join(corner.budget).removeprefix("--"),
            corner.method or "ijepa", f"{preset}, {grid} of {patch} px", batch, steps, found["seconds_to_plan"],
            f"{found['peak_bytes'] / 1e9:.1f}", found["status"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, facts))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge every corner that is not done yet, then write and print the table."""
    beside = shlex.quote(str(Path(sys.executable).parent / "openjepa"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photographs", type=Path, help="folder of photographs")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/corners"), help="folder of images, runs and the table"
    )
    parser.add_argument("--openjepa", default=beside, metavar="COMMAND", help="the version to judge")
    asked = parser.parse_args()
    photographs = sorted(
        path for path in asked.photographs.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")
    )
    if not photographs:
        raise SystemExit(f"{asked.photographs}: no photographs (.jpg, .jpeg) there")
    results = []
    for corner in corners():
        data = asked.out / "data" / corner.data
        make_images(photographs, corner, data)
        results.append(judge(corner, data, shlex.split(asked.openjepa), asked.out))
        print(corner.name, results[-1]["status"], results[-1]["plan"], flush=True)
    text = table(results)
    (asked.out / "corners.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    sys.exit(any(found["status"] for found in results))


if __name__ == "__main__":
    main()
