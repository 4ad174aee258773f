"""The provenance of a benchmark's figures: in its JSON, and below its tables.

Importing it makes the folder examples/ importable, whose networks and programs the
benchmarks use.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

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


def commit():
    """The commit that is checked out, with `+` if the code differs from it.

    Without a repository it is the environment variable `COMMIT`, or "".
    """
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    code = ["--", ".", ":!benchmarks/*/results/*", ":!*.md"]
    differs = git("status", "--porcelain", "--untracked-files=no", *code)
    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(differs)


def git(*arguments):
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def write(path, command, **figures):
    """Write the figures to a JSON file, with the command, commit and machine."""
    record = {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        **figures,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def read(path):
    return json.loads(path.read_text())


# --- Tables and plots ----------------------------------------------------------------


def made_with(command, record, packages, *more):
    """The line below a table: command, machine, versions."""
    return f"\n`{command}`, {made_on(record, packages, *more)}"


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


def save(figure, path):
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
