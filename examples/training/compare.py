"""Several runs of a method against those of another, seed by seed."""

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

MEMORISED = 0.9  # of the training images, from which plain training memorises


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
    if n < 3:
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


# --- What several runs of several methods say ----------------------------------------
#
# `results` is `{method: {seed: result}}`, each result that of `record.write` with the
# `history` of the run.


def column(runs, read):
    return {seed: read(run) for seed, run in runs.items()}


def accuracy(run):
    return 100 * run["test"]["accuracy"]


def nll(run):
    return run["test"]["nll"]


def table(results):
    """Markdown: a row for each method, differences from the first."""
    first, *_ = results
    header = ["method", "n", "training accuracy %", "test accuracy %", "NLL, nats"]
    header += ["ECE %", f"accuracy - {first}", f"NLL - {first}", "s an epoch"]
    rows = [header, ["---"] * len(header)]
    for method, runs in results.items():
        cells = [method, len(runs)]
        for read, digits in (
            (lambda run: 100 * run["history"]["accuracy"][-1], 1),
            (accuracy, 2),
            (nll, 3),
            (lambda run: 100 * run["test"]["ece"], 1),
        ):
            values = list(column(runs, read).values())
            cells.append(mean_and_spread(values, digits))
        for read, digits in ((accuracy, 2), (nll, 3)):
            baseline = column(results[first], read)
            text = difference(column(runs, read), baseline, digits)
            cells.append("-" if method == first else text)
        seconds = [run["seconds_per_epoch"] for run in runs.values()]
        cells.append(f"{np.median(seconds):.1f}")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n"


def advice(results):
    """What kind of training this is, and what to do."""
    lines = [regime(results["erm"])] if "erm" in results else []
    if {"erm", "mixavg"} <= set(results):
        ours, plain = (column(results[name], accuracy) for name in ("mixavg", "erm"))
        lines.append(recommendation([ours[seed] - plain[seed] for seed in ours]))
    return "\n".join(lines)


def regime(runs):
    """Whether plain training memorises or underfits."""
    trained = np.mean([run["history"]["accuracy"][-1] for run in runs.values()])
    tested = np.mean([run["test"]["accuracy"] for run in runs.values()])
    if trained >= MEMORISED:
        verdict = "memorises. This is where averaged pairs are meant to help."
    else:
        verdict = (
            "underfits. A regularizer hardly helps here: train longer, or a larger "
            "network, and compare again."
        )
    return (
        f"Plain training gets {100 * trained:.1f} % of its training images right and "
        f"{100 * tested:.1f} % of the others: it {verdict}"
    )


def recommendation(differences):
    """What the differences in accuracy of mixavg and plain training say."""
    mean, half = interval(differences)
    if mean - half > 0:
        return "Use mixavg: it is more accurate than plain training here."
    if mean + half < 0:
        return "Stay with plain training: it is more accurate here."
    n = len(differences)
    seeds = f"{n} seed does" if n == 1 else f"{n} seeds do"
    about = f" ± {half:.2f}" if np.isfinite(half) else ""
    return (
        f"{seeds} not tell mixavg from plain training: the difference is {mean:+.2f} "
        f"points{about}. Run more with --seeds."
    )


def draw_curves(results):
    """Test accuracy of each method over the epochs, and each run."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    for i, (method, runs) in enumerate(results.items()):
        curves = np.array([run["history"]["val_accuracy"] for run in runs.values()])
        epochs = 1 + np.arange(curves.shape[1])
        ax.plot(epochs, 100 * curves.T, color=f"C{i}", lw=0.6, alpha=0.5)
        mean = 100 * curves.mean(axis=0)
        ax.plot(epochs, mean, color=f"C{i}", lw=2, label=f"{method}, mean")
    ax.set(xlabel="epoch", ylabel="test accuracy, %")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_title("Which method is the most accurate on images it has not seen?")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure
