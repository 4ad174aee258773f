"""How the benchmarks measure time and memory."""

import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import provenance

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turns(actions, repeats):
    """Seconds of each action. The actions take turns, after one warm-up round.

    Args:
        actions: functions without arguments, by name.
        repeats: the number of rounds.

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
    """Peak memory of this process in MiB. (Linux' ru_maxrss includes the parent's.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def output_of(code):
    """The output of a process that runs `code`, which can import these benchmarks."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.argv = ['']\nimport measuring\n{code}",
        ],
        env={**os.environ, "PYTHONPATH": f"{FOLDER}:{provenance.ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def peak_of(code):
    """Peak memory in MiB of a process that runs `code`."""
    return float(output_of(code + "\nprint(measuring.own_peak())").split()[-1])
