"""Tables of several runs, and differences between methods, paired by seed."""

import numpy as np
from scipy import stats

PAIRS = 3  # of runs, the fewest for an interval


def number(value, digits, sign=""):
    """The value with `digits` digits, or none above 100, as after divergence."""
    return f"{value:{sign}.{digits if abs(value) <= 100 else 0}f}"


def mean_and_spread(values, digits, mean=None):
    """`mean ± standard deviation`, only the mean of one value, `-` of none.

    `mean` is that of the values, unless it is given.
    """
    if not len(values):
        return "-"
    text = number(np.mean(values) if mean is None else mean, digits)
    if len(values) == 1:
        return text
    return f"{text} ± {number(np.std(values, ddof=1), digits)}"


def table(methods, columns):
    """The table of methods: rows of text, the first of which is the heading.

    Args:
        methods: `{name: {score: values}}`, a value for each run.
        columns: `{score: (heading, factor, digits)}`.
    """
    rows = [["method", *(heading for heading, _, _ in columns.values())]]
    for name, scores in methods.items():
        cells = [
            mean_and_spread([factor * value for value in scores[score]], digits)
            for score, (_, factor, digits) in columns.items()
        ]
        rows.append([name, *cells])
    return rows


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def interval(differences):
    """The mean of paired differences, and half the width of its 95 % interval.

    Student's t with n - 1 degrees of freedom, which assumes that the differences are
    about normal. The width is infinite below three pairs.
    """
    n = len(differences)
    if n < PAIRS:
        return float(np.mean(differences)), float("inf")
    error = np.std(differences, ddof=1) / np.sqrt(n)
    return float(np.mean(differences)), float(stats.t.ppf(0.975, n - 1) * error)


def difference(values, baseline, digits):
    """`mean [low, high]` over the seeds that both have, bold if it excludes zero.

    Args:
        values: `{seed: number}`.
        baseline: the same of the other method.
        digits: how many to show.
    """
    seeds = sorted(set(values) & set(baseline))
    if not seeds:
        return "-"
    mean, half = interval([values[s] - baseline[s] for s in seeds])
    if half == float("inf"):
        return f"{mean:+.{digits}f}"
    text = f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return f"**{text}**" if abs(mean) > half else text
