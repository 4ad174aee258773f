"""Write the tables of the READMEs, and draw their plots, from the results.

    python -m benchmarks.report            # rewrite both READMEs and results/plots/
    python -m benchmarks.report --check    # only say whether they are up to date

What stands between `<!-- NAME -->` and `<!-- end -->`, in README.md beside this file
and in the project's, is made here, the rest is written by hand. NAME is that of a
benchmark, `grid: GRID`, `choices: GRID`, `summary` or `claims`. Each table says which
command made its figures.
"""

import argparse
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import accuracy  # noqa: E402
import checkpoint  # noqa: E402
import early_stopping  # noqa: E402
import input_pipeline  # noqa: E402
import record  # noqa: E402
import training_step  # noqa: E402

READMES = [
    record.BENCHMARKS / "README.md",
    record.ROOT / "README.md",
    record.ROOT / "docs/early_stopping.md",
]
BLOCK = re.compile(r"(<!-- ([\w: ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
BENCHMARKS = {
    "checkpoint": checkpoint,
    "early_stopping": early_stopping,
    "input_pipeline": input_pipeline,
    "training_step": training_step,
}


def made(name, draw):
    """The text of a part, and its plots if asked for."""
    if name == "summary":
        if draw:
            record.save(accuracy.draw_gains(), "gains")
        return accuracy.summary()
    if name == "claims":
        return accuracy.claims()
    if name.startswith("choices: "):
        return accuracy.choices(name.removeprefix("choices: "))
    if name.startswith("grid: "):
        name = name.removeprefix("grid: ")
        if draw:
            accuracy.plot(name)
        return accuracy.table(name)
    benchmark, results = BENCHMARKS[name], record.read(name)
    if draw and hasattr(benchmark, "plot"):
        benchmark.plot(results)
    return benchmark.table(results)


def render(text, draw=False):
    """The README's text with every part between markers made anew."""
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
            raise SystemExit(f"{path} is not what the results say: run without --check")


if __name__ == "__main__":
    main()
