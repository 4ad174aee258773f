"""The figures of the demo: examples/quickstart.py with three runs of each method.

    python benchmarks/accuracy/demo.py

Writes `results/quickstart/`: the pictures, and `result.json` with command and commit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import provenance
import quickstart

COMMAND = "python benchmarks/accuracy/demo.py"
RESULT = Path(__file__).resolve().parent / "results/quickstart/result.json"


def measure(*arguments, path=RESULT):
    """Run the demo with these arguments, and name command and commit in its record."""
    commit = provenance.commit()  # now, not after the runs
    args = quickstart.parse_arguments([*arguments, "--out", str(path.parent)])
    report = quickstart.main(args)
    del report["settings"]["out"]
    provenance.write(path, COMMAND, **report, commit=commit)


if __name__ == "__main__":
    measure("--runs", "3")
