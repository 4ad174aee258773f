"""Accuracy of methods in settings over seeds: one grid of runs of the example program.

    python benchmarks/accuracy.py benchmarks/grids/smoke.toml    # two minutes, no data
    python benchmarks/accuracy.py benchmarks/grids/methods.toml --data-dir DIR
    python -m benchmarks.report                                  # tables and plots

A grid is a TOML file: `seeds`; `[common]` options of all runs; `[settings.NAME]` and
`[methods.NAME]` with the options of each. Each run is `examples/cifar.py` with the
three sets of options, later ones winning, and with the methods of ablations.py beside
this file too. Runs share the cores, `--jobs` at a time; seed follows seed.

A finished run is a JSON file, in `benchmarks/results/accuracy/GRID/SETTING/`, and is
never repeated; one that was stopped starts anew, as its figures would depend on when.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "results" / "accuracy"
ROOT = BENCHMARKS.parent


@dataclass(frozen=True)
class Run:
    setting: str
    method: str
    seed: int
    options: dict

    @property
    def name(self):
        return f"{self.setting}/{self.method}-{self.seed}"


def read_grid(path, smoke=False):
    """The grid's dict, and its runs in the order in which they are to be done."""
    with open(path, "rb") as file:
        grid = tomllib.load(file)
    known = {"title", "seeds", "common", "settings", "methods", "baselines", "anchors"}
    if unknown := set(grid) - known:
        raise SystemExit(f"{path}: expected {sorted(known)}, found {sorted(unknown)}.")
    for part in ("title", "seeds", "baselines", "settings", "methods"):
        if not grid.get(part):
            raise SystemExit(f"{path}: `{part}` is missing or empty.")
    last = {"smoke": True} if smoke else {}
    runs = [
        Run(
            setting,
            method,
            seed,
            {**grid.get("common", {}), **extra, **options, **last},
        )
        for seed in grid["seeds"]
        for setting, extra in grid["settings"].items()
        for method, options in grid["methods"].items()
    ]
    return grid, runs


def write(path, result):
    """The result of a run, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result) + "\n")
    unfinished.rename(path)


def commit():
    """The commit that is checked out, `+` if files differ from it; "" if none is."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    command += ["--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


# --- One run, in a process of its own ------------------------------------------------


def flags(options):
    """Options as the program's command line has them."""
    result = []
    for name, value in options.items():
        if value is not False:
            result += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return result


def train(run, data_dir, out):
    """Train with the example program, and write what came of it to `out`."""
    sys.path[:0] = [str(ROOT / "examples"), str(ROOT)]
    folder = (
        Path("runs") / f"accuracy-{os.getpid()}" / out.parent.parent.name / run.name
    )
    shutil.rmtree(folder, ignore_errors=True)
    options = {**run.options, "seed": run.seed, "out": folder, "quiet": True}
    if data_dir:
        options["data-dir"] = data_dir
    if "backend" in options:
        os.environ["KERAS_BACKEND"] = options["backend"]
    import cifar  # which imports Keras
    import numpy as np
    from training import fit, record
    from training.methods import METHODS

    from benchmarks.ablations import ABLATIONS

    args = cifar.parse_arguments(flags(options), METHODS | ABLATIONS)
    result = fit.main(args, cifar.load)
    history = {
        name: [None if value != value else value for value in values]  # no nan in JSON
        for name, values in record.read_history(folder).items()
        if any(value == value for value in values)
    }
    table = folder / "soft_labels.npy"
    table = np.load(table).astype(float).round(5).tolist() if table.exists() else None
    for place in ("out", "data_dir"):
        del result["settings"][place]
    result = {**vars(run), **result, "commit": commit()}
    result |= {"history": history, "table": table}
    write(out, result)
    shutil.rmtree(Path("runs") / f"accuracy-{os.getpid()}")


# --- All of them ---------------------------------------------------------------------


def clock(seconds):
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min"
        if minutes >= 60
        else (f"{minutes} min" if minutes else f"{seconds:.0f} s")
    )


class Progress:
    """Says after each run how long the others will take, from those that are done."""

    def __init__(self, runs, jobs):
        self.waiting, self.jobs, self.seconds = list(runs), jobs, {}

    def finished(self, run, seconds):
        self.waiting.remove(run)
        self.seconds.setdefault(run.setting, []).append(seconds)
        means = {name: sum(all_) / len(all_) for name, all_ in self.seconds.items()}
        overall = sum(means.values()) / len(means)
        left = sum(means.get(other.setting, overall) for other in self.waiting)
        return f"{len(self.waiting)} to go, about {clock(left / self.jobs)}"


def copy_equal_runs(runs, out):
    """Take over what another grid has finished with the same options and seed."""
    finished = [json.loads(path.read_text()) for path in RESULTS.glob("*/*/*.json")]
    for run in runs:
        path = out / f"{run.name}.json"
        for other in finished:
            if path.exists():
                break
            if (other["options"], other["seed"]) == (run.options, run.seed):
                print(f"{run.name}: as {other['setting']}/{other['method']}")
                write(path, {**other, **vars(run)})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("grid", type=Path)
    add("--data-dir", help="where TFDS has, or puts, the data")
    add("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    add("--out", type=Path, help="default: benchmarks/results/accuracy/GRID")
    add("--smoke", action="store_true",
        help="every run of the grid, but two epochs on digits, into runs/smoke/GRID")
    add("--run", help=argparse.SUPPRESS)  # one run, in this process
    add("--core", type=int, help=argparse.SUPPRESS)
    # fmt: on
    args = parser.parse_args()
    _, runs = read_grid(args.grid, args.smoke)
    folder = Path("runs") / "smoke" if args.smoke else RESULTS
    out = args.out or folder / args.grid.stem
    if args.run:
        if hasattr(os, "sched_setaffinity"):  # TensorFlow then starts no more threads
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores[args.core :: args.jobs] or cores)
        (run,) = (run for run in runs if run.name == args.run)
        return train(run, args.data_dir, out / f"{run.name}.json")

    if not args.smoke:
        copy_equal_runs(runs, out)
    for run in runs:
        path = out / f"{run.name}.json"
        if path.exists() and json.loads(path.read_text())["options"] != run.options:
            raise SystemExit(
                f"{path} was made with other options than {args.grid} has now. Delete "
                "it to run it again, or choose another --out."
            )
    todo = [run for run in runs if not (out / f"{run.name}.json").exists()]
    print(
        f"{len(runs) - len(todo)} of {len(runs)} runs are there, in {out}", flush=True
    )
    progress, start = Progress(todo, args.jobs), time.perf_counter()
    cores, failed = SimpleQueue(), []
    for core in range(args.jobs):
        cores.put(core)

    def start_process(run):
        core, begin = cores.get(), time.perf_counter()
        flags = ["--run", run.name, "--core", str(core), "--jobs", str(args.jobs)]
        flags += ["--data-dir", args.data_dir] if args.data_dir else []
        flags += ["--smoke"] if args.smoke else []
        command = [sys.executable, __file__, str(args.grid), "--out", str(out), *flags]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        cores.put(core)
        left = progress.finished(run, time.perf_counter() - begin)
        if process.returncode:
            failed.append(run.name)
            print(f"{run.name} FAILED; {left}\n{process.stderr[-3000:]}", flush=True)
        else:
            figures = process.stdout.strip().splitlines()[-1]
            print(f"{run.name}: {figures}; {left}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(start_process, todo))
    print(f"Finished in {clock(time.perf_counter() - start)}.")
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
