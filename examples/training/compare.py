"""Several runs of a method against those of another, seed by seed."""

import numpy as np
from scipy import stats

PAIRS = 3  # of runs, that an interval takes


def mean_and_spread(values, digits):
    """`mean ± standard deviation`; the mean alone of one value."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def interval(differences):
    """Mean, and the half width of its 95 % interval, of paired differences.

    Student's t with n - 1 degrees of freedom: right for differences of runs with the
    same seeds if these are about normal. Infinite below three pairs.
    """
    n = len(differences)
    if n < PAIRS:
        return float(np.mean(differences)), float("inf")
    error = np.std(differences, ddof=1) / np.sqrt(n)
    return float(np.mean(differences)), float(stats.t.ppf(0.975, n - 1) * error)


def difference(values, baseline, digits):
    """`mean [low, high]` over the seeds that both have, bold if zero lies outside.

    Args:
        values: a number for each seed, `{seed: value}`.
        baseline: as `values`.
        digits: to show.
    """
    seeds = sorted(set(values) & set(baseline))
    if not seeds:
        return "-"
    mean, half = interval([values[s] - baseline[s] for s in seeds])
    if half == float("inf"):
        return f"{mean:+.{digits}f}"
    text = f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return f"**{text}**" if abs(mean) > half else text
