"""How a benchmark measures time and memory, and what its JSON says beside the figures.

Importing it makes the folder examples/ importable, whose networks and programs the
benchmarks use.
"""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
PLOTS = RESULTS / "plots"

for folder in (str(ROOT), str(ROOT / "examples")):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from training.environment import machine, versions  # noqa: E402

NAMES = {
    "keras": "Keras",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "numpy": "NumPy",
}

# --- To measure ----------------------------------------------------------------------


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turns(actions, repeats):
    """Seconds of each action, which take turns, after one round of warm-up.

    Args:
        actions: functions without arguments, by name.
        repeats: the rounds.

    Returns:
        `{name: [seconds, ...]}`.
    """
    times = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            times[name].append(seconds(action))
    return {name: values[1:] for name, values in times.items()}


def quartiles(values):
    """The first and the third."""
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]


def own_peak():
    """Peak memory of this process in MiB. (Linux' ru_maxrss has the parent's in it.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def output_of(code):
    """What a process prints that runs `code`, in this folder."""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['']\nimport record\n{code}"],
        env={**os.environ, "PYTHONPATH": f"{BENCHMARKS}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def peak_of(code):
    """Peak memory in MiB of a process that runs `code`, in this folder."""
    return float(output_of(code + "\nprint(record.own_peak())").split()[-1])


def commit():
    """The commit that is checked out, `+` if code differs from it; "" if none is.

    Where there is a copy of the files and no repository, `COMMIT` says it.
    """
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    code = ["--", ".", ":!benchmarks/results", ":!*.md"]
    differs = git("status", "--porcelain", "--untracked-files=no", *code)
    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(differs)


def git(*arguments):
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


# --- To write and to read ------------------------------------------------------------


def write(name, command, **figures):
    """Write `results/NAME.json`: the figures, how they came about, and on what."""
    record = {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


# --- To show -------------------------------------------------------------------------


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def made_with(record, packages, *more):
    """The line below a table: command, machine, versions."""
    return f"\n`{record['command']}`, {made_on(record, packages, *more)}"


def made_on(record, packages, *more):
    """Machine and versions."""
    found = [n for n in packages if n in record["versions"]]
    about = [f"{NAMES.get(n, n)} {record['versions'][n]}" for n in found]
    machine = record["machine"]
    if isinstance(machine, dict):
        devices = {re.sub(r"\W*\d+$", "", name) for name in machine["devices"]}
        devices = sorted(name for name in devices if "cpu" not in name.lower())
        cores = f"{machine['processor']}, {machine['cores']} cores"
        machine = ", ".join([*devices, cores])
    return ", ".join([machine, *more, *about])


def save(figure, name):
    import matplotlib.pyplot as plt

    PLOTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOTS / f"{name}.png", dpi=100)
    plt.close(figure)
