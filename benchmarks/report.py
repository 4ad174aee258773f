"""Write the tables of the READMEs, and draw their plots, from the results.

    python -m benchmarks.report            # rewrite all tables and plots
    python -m benchmarks.report --check    # only say whether the tables are up to date

It writes what stands between `<!-- NAME -->` and `<!-- end -->`, in the files of
READMES. NAME is a benchmark, `grid: GRID`, `choices: GRID`, `summary` or `steps`. Below
each table is the command that made its figures.
"""

import argparse
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER / room) for room in ("", "speed", "accuracy")]

import checkpoint  # noqa: E402
import early_stopping  # noqa: E402
import input_pipeline  # noqa: E402
import plots  # noqa: E402
import provenance  # noqa: E402
import tables  # noqa: E402
import training_step  # noqa: E402

READMES = [
    FOLDER / "accuracy/README.md",
    FOLDER / "speed/README.md",
    provenance.ROOT / "README.md",
    provenance.ROOT / "docs/early_stopping.md",
]
BLOCK = re.compile(r"(<!-- ([\w: ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
BENCHMARKS = {
    "checkpoint": checkpoint,
    "early_stopping": early_stopping,
    "input_pipeline": input_pipeline,
    "training_step": training_step,
}


def made(name, draw):
    """The text of a part; draws its plots too if asked."""
    kind, _, grid = name.partition(": ")
    if draw and kind == "summary":
        plots.save_gains()
    if draw and kind == "grid":
        plots.save_all(grid)
    if kind in BENCHMARKS:
        benchmark = BENCHMARKS[kind]
        results = provenance.read(benchmark.RESULT)
        if draw and hasattr(benchmark, "plot"):
            benchmark.plot(results)
        return benchmark.table(results)
    make = {
        "summary": tables.summary,
        "steps": tables.steps,
        "grid": tables.table,
        "choices": tables.choices,
    }
    return make[kind](*([grid] if grid else []))


def render(text, draw=False):
    """The text with every part between markers updated."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{made(m[2], draw)}\n{m[3]}", text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for path in READMES:
        text = path.read_text()
        new = render(text, draw=not args.check)
        if not args.check:
            path.write_text(new)
        elif text != new:
            raise SystemExit(f"{path} differs from the results: run without --check")


if __name__ == "__main__":
    main()
