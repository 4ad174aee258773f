"""Run a grid: methods in settings over seeds, each by an example program.

    cd benchmarks/accuracy
    python grid.py grids/smoke.toml --smoke              # two minutes, no data
    python grid.py grids/memorise.toml --data-dir DIR

A grid is a TOML file: `title`; `seeds`; `baselines`, the methods to compare with;
`plots`, a choice of those in plots.py; `[common]` options of all runs;
`[settings.NAME]` and `[methods.NAME]` with the options of each. A run is
`examples/cifar.py`, or the `program` that the options name, with these three sets of
options; later ones win. It also knows the methods of ablations.py. `--jobs` runs share
the cores; all runs of a seed come before those of the next.

A method may leave options open with `choose`, a list of tables of options. For each
setting the grid takes the table with the best mean accuracy, over the seeds and the
`held-out` training images that `[choice]` names, or the `choice` of a setting that has
fewer images. No test image is used. These runs come first.

A finished run is a line of `results/accuracy.jsonl`, with its options, seed and commit.
A run with the same options and seed is never repeated, whichever grid asks for it. A
run that was stopped starts again from its first epoch, so that its seconds are those of
a whole run.
"""

import argparse
import fcntl
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import provenance
from training.clock import clock

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parent
GRIDS = FOLDER / "grids"
RUNS = FOLDER / "results/accuracy.jsonl"
REQUIRED = {"title", "seeds", "baselines", "settings", "methods"}
KNOWN = REQUIRED | {"common", "plots", "anchors", "choice"}
PLACES = ("out", "data_dir", "arrays", "archive")  # paths, which are not recorded


@dataclass(frozen=True)
class Run:
    setting: str
    method: str
    seed: int
    options: dict

    @property
    def name(self):
        return f"{self.setting}/{self.method}-{self.seed}"


def read(path, smoke=False, results=RUNS):
    """The grid's dict, and its runs, in order.

    The runs that choose options come first. A method has no other runs before its
    options are chosen. `results` is the file of finished runs.
    """
    with open(path, "rb") as file:
        grid = tomllib.load(file)
    if unknown := set(grid) - KNOWN:
        raise SystemExit(f"{path}: expected {sorted(KNOWN)}, found {sorted(unknown)}.")
    for part in sorted(REQUIRED):
        if not grid.get(part):
            raise SystemExit(f"{path}: `{part}` is missing or empty.")
    open_methods = [name for name, of in grid["methods"].items() if "choose" in of]
    if bool(open_methods) != ("choice" in grid):
        raise SystemExit(f"{path}: `choice` goes with `choose` of a method.")
    last, few = ({"smoke": True}, {"held-out": 300}) if smoke else ({}, {})
    done = finished(results) if open_methods else {}
    choosing, comparing = [], []
    for setting in grid["settings"]:
        how = {**choice_of(grid, setting), **few}
        for method in grid["methods"]:
            options = {**options_of(grid, setting, method), **last}
            if "choose" in options:
                runs, options = choice(setting, method, options, how, done)
                choosing += runs
            if options is not None:
                comparing += [Run(setting, method, s, options) for s in grid["seeds"]]
    comparing.sort(key=lambda run: grid["seeds"].index(run.seed))
    return grid, choosing + comparing


def options_of(grid, setting, method):
    """The options of a method in a setting; later tables win."""
    tables = grid.get("common", {}), grid["settings"][setting], grid["methods"][method]
    options = {name: value for table in tables for name, value in table.items()}
    options.pop("choice", None)
    return options


def choice_of(grid, setting):
    """Seeds and number of held-out images by which a setting chooses options."""
    return {**grid.get("choice", {}), **grid["settings"][setting].get("choice", {})}


def choice(setting, method, options, how, done):
    """The runs that choose between the options of a method, and the chosen options.

    Returns:
        `(runs, options)`, with None for options while runs are missing.
    """
    runs, accuracies = [], []
    candidates = [{**options, **own} for own in options["choose"]]
    for candidate, own in zip(candidates, options["choose"], strict=True):
        del candidate["choose"]
        name = ", ".join([method, *(f"{key} {value}" for key, value in own.items())])
        tried = {**candidate, "held-out": how["held-out"]}
        mine = [Run(setting, name, seed, tried) for seed in how["seeds"]]
        lines = [done.get(key(run.options, run.seed)) for run in mine]
        runs += mine
        if all(lines):
            accuracies.append(sum(line["test"]["accuracy"] for line in lines))
    if len(accuracies) < len(candidates):
        return runs, None
    return runs, candidates[accuracies.index(max(accuracies))]


# --- The results ---------------------------------------------------------------------


def key(options, seed):
    """Identifies a run. 1 and 1.0 are the same."""
    same = {
        name: float(value) if type(value) is int else value
        for name, value in options.items()
    }
    return json.dumps([same, seed], sort_keys=True)


def finished(path=RUNS):
    """Every finished run, `{key: line}`."""
    if not path.exists():
        return {}
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    return {key(line["options"], line["seed"]): line for line in lines}


def append(line, path=RUNS):
    """Add the line of a run unless it is there. Returns whether it was added.

    Other processes wait for the file meanwhile. A truncated line, of a process that
    died, is cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if key(line["options"], line["seed"]) in finished(path):
            return False
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return True


# --- One run, in a new process -------------------------------------------------------


def flags(options):
    """Options as flags of the program."""
    result = []
    for name, value in options.items():
        if value is not False:
            result += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return result


def arguments(options):
    """`(program, args)`: the module that the options name, and its arguments."""
    # The key of a run says TensorFlow by saying nothing.
    os.environ["KERAS_BACKEND"] = options.get("backend", "tensorflow")
    import cifar  # which imports Keras
    import tiny_imagenet
    from ablations import ABLATIONS
    from efficientnet_lite0 import NAME, efficientnet_lite0
    from training import networks
    from training.methods import METHODS

    networks.APPLICATIONS[NAME] = efficientnet_lite0

    options = dict(options)
    programs = {"cifar": cifar, "tiny_imagenet": tiny_imagenet}
    program = programs[options.pop("program", "cifar")]
    return program, program.parse_arguments(flags(options), METHODS | ABLATIONS)


def train(run, places, path):
    """Train with the example program, and append the result."""
    commit = provenance.commit()  # now, not after the run
    folder = Path("runs") / f"grid-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    more = {"seed": run.seed, "out": folder, "quiet": True, **places}
    program, args = arguments({**run.options, **more})
    from training import fit
    from training.record import read_history

    result = fit.main(args, program.load)
    table = folder / "soft_labels.npy"
    for place in PLACES:
        result["settings"].pop(place, None)
    line = {"options": run.options, "seed": run.seed, "commit": commit}
    line |= {**result, "history": short(read_history(folder)), "table": None}
    if table.exists():
        import numpy as np

        values = np.load(table).astype(float)
        line["table"] = values.round(5).tolist() if len(values) <= 20 else None
    append(line, path)
    shutil.rmtree(folder)


def short(history):
    """The columns that are not empty, in six digits, with None for missing values."""
    return {
        name: [None if value != value else float(f"{value:.6g}") for value in values]
        for name, values in history.items()
        if any(value == value for value in values)
    }


# --- All of them ---------------------------------------------------------------------


class TimeLeft:
    """Estimates after each run how long the others will take."""

    def __init__(self, runs, jobs):
        self.waiting, self.jobs, self.seconds = list(runs), jobs, {}

    def finished(self, run, seconds):
        self.waiting.remove(run)
        self.seconds.setdefault(run.setting, []).append(seconds)
        means = {name: sum(all_) / len(all_) for name, all_ in self.seconds.items()}
        overall = sum(means.values()) / len(means)
        left = sum(means.get(other.setting, overall) for other in self.waiting)
        return f"{len(self.waiting)} to go, about {clock(left / self.jobs)}"


def run_all(todo, args):
    """Run each in its own process, `--jobs` at a time; returns those that failed."""
    time_left, cores, failed = TimeLeft(todo, args.jobs), SimpleQueue(), []
    for core in range(args.jobs):
        cores.put(core)

    def run_one(run):
        core, begin = cores.get(), time.perf_counter()
        if key(run.options, run.seed) in finished(args.results):
            cores.put(core)
            time_left.waiting.remove(run)
            return print(f"{run.name}: another process has done it", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--run", run.name]
        command += ["--core", str(core)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        cores.put(core)
        left = time_left.finished(run, time.perf_counter() - begin)
        if process.returncode:
            failed.append(run.name)
            print(f"{run.name} FAILED; {left}\n{process.stderr[-3000:]}", flush=True)
        else:
            scores = process.stdout.strip().splitlines()[-1]
            print(f"{run.name}: {scores}; {left}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run_one, todo))
    return failed


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("grid", type=Path)
    add("--data-dir", help="the data directory of TFDS")
    add("--arrays", help="a file with the data, see cifar.py --help")
    add("--archive", help="of Tiny-ImageNet")
    add("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    add("--results", type=Path, help="(default: results/accuracy.jsonl of the study)")
    add("--setting", help="run only this setting")
    add("--smoke", action="store_true",
        help="every run of the grid for two epochs on digits, into runs/smoke.jsonl")
    add("--run", help=argparse.SUPPRESS)  # one run, in this process
    add("--core", type=int, help=argparse.SUPPRESS)
    # fmt: on
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {args.jobs}")
    args.results = args.results or (Path("runs/smoke.jsonl") if args.smoke else RUNS)
    return args


def possible(runs, args):
    """The runs for which all files are there; says which are left out."""
    if args.smoke:
        return runs
    kept = [run for run in runs if args.archive or "program" not in run.options]
    if len(kept) < len(runs):
        print(
            f"{len(runs) - len(kept)} runs of Tiny-ImageNet are left out: they need "
            "--archive with an archive of its 20 classes.",
            flush=True,
        )
    for file in {run.options.get("weights") for run in kept} - {None, "imagenet"}:
        if not Path(file).is_file():
            raise SystemExit(
                f"There is no file {file}. To write it:\n"
                f"    python {FOLDER / 'efficientnet_lite0.py'} {file}"
            )
    return kept


def main():
    args = parse_arguments()
    content, runs = read(args.grid, args.smoke, args.results)
    if args.setting and args.setting not in content["settings"]:
        names = ", ".join(map(repr, content["settings"]))
        raise SystemExit(f"--setting {args.setting!r} is none of {names}")
    if args.run:
        if hasattr(os, "sched_setaffinity"):  # TensorFlow then starts no more threads
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores[args.core :: args.jobs] or cores)
        (run,) = (run for run in runs if run.name == args.run)
        places = {"data-dir": args.data_dir, "arrays": args.arrays}
        if run.options.get("program") == "tiny_imagenet":
            places = {"archive": args.archive}
        places = {name: place for name, place in places.items() if place}
        return train(run, places, args.results)
    start, failed = time.perf_counter(), []
    while True:  # again once the options of all methods are chosen
        _, runs = read(args.grid, args.smoke, args.results)
        if args.setting:
            runs = [run for run in runs if run.setting == args.setting]
        done = finished(args.results)
        todo = [run for run in runs if key(run.options, run.seed) not in done]
        counts = f"{len(runs) - len(todo)} of {len(runs)} runs"
        print(f"{counts} are in {args.results}", flush=True)
        todo = possible(todo, args)
        if failed or not todo:
            break
        failed = run_all(todo, args)
    print(f"Finished in {clock(time.perf_counter() - start)}.")
    if args.results == RUNS:
        print("The tables and plots: python -m benchmarks.report")
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
