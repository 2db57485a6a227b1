"""The default judged on many kinds of images: each set pretrained from scratch for minutes of one core, then evaluated.

    python benchmarks/domains.py FOLDER --out runs/domains --minutes 5      # as `make domains DATA=FOLDER`

FOLDER holds pairs of tars, `NAME-train.tar` and `NAME-test.tar`, with members `CLASS/file`: those of `KNOWN` and any
other. `scenes` and Fashion-MNIST come beside them. Each set is one `openjepa pretrain` that is told nothing but the
budget, and one `openjepa evaluate`, in processes that are held to one core; what they print is in `OUT/NAME.log`.
Missing sets are named and skipped, a failed run stands in the table with its message, and a set that has its
`evaluation.json` is not run again. The table is written to `OUT/domains.md`, its numbers to `OUT/domains.json`;
docs/domains.md says what its columns mean.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KNOWN = ("cifar10", "mri", "steel", "rbc", "signs", "leaves", "xray", "grocery", "trash", "omniglot")
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
PRETRAIN_OPTIONS: tuple[str, ...] = ()
"""Given to every pretraining beside the budget, the seed and what was asked for: the default is what is judged."""


@dataclass(frozen=True)
class DataSet:
    """A labelled data set, as `openjepa evaluate` opens it."""

    name: str
    train: str
    test: str
    protocols: tuple[str, ...] = ("knn", "linear")


@dataclass(frozen=True)
class Judgement:
    """What is done with each set."""

    out: Path
    openjepa: tuple[str, ...]
    evaluate_with: tuple[str, ...]
    minutes: float
    core: int
    seed: int = 0
    method: str | None = None
    set: tuple[str, ...] = ()

    @property
    def asked(self) -> dict[str, Any]:
        """What the result of a set depends on, beside its images."""
        return {
            "openjepa": shlex.join(self.openjepa), "minutes": self.minutes, "seed": self.seed, "method": self.method,
            "set": list(self.set),
        }  # fmt: skip

    @property
    def options(self) -> list[str]:
        """The options of `openjepa pretrain`, but for its folder."""
        given = [*PRETRAIN_OPTIONS, "--max-minutes", f"{self.minutes:g}", "--seed", str(self.seed)]
        given += ["--method", self.method] if self.method else []
        return given + [part for setting in self.set for part in ("--set", setting)]


class RunError(Exception):
    """A command ended with an error; the text is what it said."""


def find_sets(folder: Path) -> tuple[list[DataSet], dict[str, str]]:
    """The sets that are there, known ones first, and why others are not, by name."""
    found, missing = [], {}
    pairs = [path.name.removesuffix("-train.tar") for path in sorted(folder.glob("*-train.tar"))]
    for name in (*KNOWN, *(name for name in pairs if name not in KNOWN)):
        tars = [folder / f"{name}-{split}.tar" for split in ("train", "test")]
        if absent := [tar.name for tar in tars if not tar.is_file()]:
            missing[name] = f"no {' and no '.join(absent)} in {folder}"
        else:
            found.append(DataSet(name, *map(str, tars)))
    found.append(DataSet("scenes", "scenes:train", "scenes:test", ("knn", "linear", "count", "depth")))
    homes = [Path(home) / "fashion-mnist"] if (home := os.environ.get("OPENJEPA_DATA")) else []
    if any(place.is_dir() for place in (*homes, FASHION)):
        found.append(DataSet("fashion-mnist", "fashion-mnist:train", "fashion-mnist:test"))
    else:
        missing["fashion-mnist"] = f"no {FASHION}: install Debian's package dataset-fashion-mnist"
    return found, missing


def choose(
    sets: Sequence[DataSet], missing: dict[str, str], only: str | None
) -> tuple[list[DataSet], dict[str, str]]:
    """Those that `--only` names.

    Raises:
        SystemExit: A name that is neither there nor known.
    """
    if only is None:
        return list(sets), missing
    names = only.split(",")
    known = [*(one.name for one in sets), *missing]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--only {', '.join(unknown)}: unknown; choose from {', '.join(known)}")
    return [one for one in sets if one.name in names], {
        name: missing[name] for name in names if name in missing
    }


def refuse_other_settings(sets: Sequence[DataSet], judgement: Judgement) -> None:
    """Compare what was asked for with what finished runs were made with.

    Raises:
        SystemExit: A finished run was made with something else.
    """
    for one in sets:
        record = judgement.out / one.name / "pretraining.json"
        if record.is_file() and (made := read_json(record)["asked"]) != judgement.asked:
            differing = [
                f"{key} {made.get(key)!r}, not {value!r}"
                for key, value in judgement.asked.items()
                if made.get(key) != value
            ]
            raise SystemExit(
                f"{judgement.out / one.name} was made with {', '.join(differing)}: ask for the same, make it again "
                "with --again, or name another folder with --out"
            )


def judge(one: DataSet, judgement: Judgement) -> None:
    """Pretrain and evaluate, but for what an earlier call has done.

    Raises:
        RunError: One of the two failed.
    """
    folder = judgement.out / one.name
    record, result = folder / "pretraining.json", folder / "evaluation.json"
    if result.is_file() and record.is_file():
        return
    log = judgement.out / f"{one.name}.log"
    if not record.is_file():
        # A run that was cut off begins anew: its time and its memory are measured as a whole.
        again = ["--overwrite"] if (folder / "train.log").is_file() else []
        command = [
            *judgement.openjepa,
            "pretrain",
            one.train,
            "--out",
            str(folder),
            *judgement.options,
            *again,
        ]
        used = run_on_core(command, core=judgement.core, log=log)
        record.write_text(json.dumps({"asked": judgement.asked, **used}, indent=1), encoding="utf-8")
    command = [*judgement.evaluate_with, "evaluate", str(folder), "--train", one.train, "--test", one.test,
               "--baselines", "--protocols", ",".join(one.protocols), "--out", str(result)]  # fmt: skip
    run_on_core(command, core=judgement.core, log=log)


def run_on_core(command: Sequence[str], *, core: int, log: Path) -> dict[str, float]:
    """Run a command to its end on one core; its output is appended to a file.

    Returns:
        ``peak_bytes``, the most memory that it (or a process it waited for) held, and ``wall_seconds``.

    Raises:
        RunError: It could not be started, or ended with another code than 0.
    """
    start = time.perf_counter()
    # Held before it starts, so that everything which counts cores finds one. Only Linux can do this.
    pin: Callable[[], None] | None = None
    if hasattr(os, "sched_setaffinity"):
        pin = lambda: os.sched_setaffinity(0, {core})  # noqa: E731
    with log.open("a+", encoding="utf-8", errors="replace") as output:
        begin = output.tell()
        print("$", shlex.join(command), file=output, flush=True)
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=pin)
        except OSError as error:
            raise RunError(f"{command[0]}: cannot be started: {error}") from None
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(begin)
        said = output.read().splitlines()[1:]
    if process.returncode:
        raise RunError(message_of(said) or f"ended with code {process.returncode} and no message")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_bytes": usage.ru_maxrss * unit, "wall_seconds": round(time.perf_counter() - start, 1)}


def message_of(lines: Sequence[str]) -> str:
    """What a command said was wrong: its error with the lines after it, else its last line."""
    begins = [number for number, line in enumerate(lines) if line.startswith("openjepa: ")]
    told = lines[begins[-1] :] if begins else [line for line in lines if line.strip()][-1:]
    return " ".join(" ".join(told).removeprefix("openjepa: ").split())


def machine(core: int) -> str:
    """The processor, and what of it each run may use."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = (
            next(line for line in facts.splitlines() if line.startswith("model name"))
            .partition(":")[2]
            .strip()
        )
    except (FileNotFoundError, StopIteration):  # no Linux, or a processor that has no name
        model = "an unnamed processor"
    held = f"core {core} of {os.cpu_count()}" if hasattr(os, "sched_setaffinity") else "not held to one core"
    return f"{model}, {held}"


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def run_all(sets: Sequence[DataSet], judgement: Judgement) -> dict[str, str]:
    """Judge one set after the other; returns the messages of those that failed, by name."""
    failed = {}
    for number, one in enumerate(sets, start=1):
        print(f"{number}/{len(sets)} {one.name}: ", end="", flush=True)
        try:
            judge(one, judgement)
        except RunError as error:
            failed[one.name] = str(error)
            print(f"failed: {error}")
            continue
        scores = read_json(judgement.out / one.name / "evaluation.json")["protocols"]
        print(", ".join(f"{name} {100 * found['top1']:.1f} %" for name, found in scores.items()))
    return failed


def parse() -> argparse.Namespace:
    """Read the command line."""
    beside = shlex.quote(str(Path(sys.executable).parent / "openjepa"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of NAME-train.tar and NAME-test.tar")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/domains"), help="folder of the runs and the table"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of pretraining, for each set")
    parser.add_argument("--core", type=int, default=0, help="number of the core that all runs are held to")
    parser.add_argument("--only", metavar="NAME,NAME", help="these sets alone")
    parser.add_argument("--seed", type=int, default=0, help="of the pretraining")
    parser.add_argument("--method", help="passed on to openjepa pretrain")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on, too")
    parser.add_argument("--again", action="store_true", help="remove finished runs and make them again")
    parser.add_argument(
        "--openjepa", default=beside, metavar="COMMAND", help="what pretrains: another version, e.g."
    )
    parser.add_argument("--evaluate-with", default=beside, metavar="COMMAND", help="what evaluates")
    return parser.parse_args()


def main() -> None:
    """Run what is not done yet, then write and print the table."""
    asked = parse()
    judgement = Judgement(
        out=asked.out,
        openjepa=tuple(shlex.split(asked.openjepa)),
        evaluate_with=tuple(shlex.split(asked.evaluate_with)),
        minutes=asked.minutes,
        core=asked.core,
        seed=asked.seed,
        method=asked.method,
        set=tuple(asked.set),
    )
    if not asked.data.is_dir():
        raise SystemExit(f"{asked.data}: no such folder; expected one of NAME-train.tar and NAME-test.tar")
    if hasattr(os, "sched_getaffinity") and asked.core not in os.sched_getaffinity(0):
        raise SystemExit(f"--core {asked.core}: not one of this process's: {sorted(os.sched_getaffinity(0))}")
    sets, missing = choose(*find_sets(asked.data), asked.only)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.again:
        for one in sets:  # what says that it is done; `openjepa pretrain --overwrite` removes the rest
            for name in ("evaluation.json", "pretraining.json"):
                (asked.out / one.name / name).unlink(missing_ok=True)
    refuse_other_settings(sets, judgement)
    failed = run_all(sets, judgement)
    # Only now, when no run follows: it imports PyTorch, and what a process that starts another has held in memory
    # counts as the other's.
    from domains_table import figures, table

    found = [figures(one.name, one.train, judgement.out / one.name) for one in sets if one.name not in failed]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(judgement.core),
        "command": shlex.join(["openjepa", "pretrain", "SET", *judgement.options]),
        "asked": judgement.asked,
        "sets": found,
        "failed": failed,
        "missing": missing,
    }
    (asked.out / "domains.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    text = table(result)
    (asked.out / "domains.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
