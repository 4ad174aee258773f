"""How good predictions are: accuracy, likelihood and calibration."""

import numpy as np
from scipy import optimize

BINS = 15


def scores(logits, labels):
    """Test scores from `(samples, classes)` logits and class numbers.

    Accuracy and top-5 accuracy; NLL, the mean negative log-likelihood in nats; ECE, the
    expected calibration error over 15 bins (arXiv 1706.04599, eq. 3); both again with
    one temperature fitted on held-out samples; the mean probability of the predicted
    class; and the mean confidence, accuracy and count of each bin that is not empty.
    """
    log_p = log_probabilities(logits)
    probabilities = np.exp(log_p)
    own = log_p[np.arange(len(labels)), labels][:, None]
    ranks = (log_p > own).sum(axis=1)
    scaled, temperatures = temperature_scaled(logits, labels)
    bins = calibration(probabilities, labels)
    names = ("confidence", "accuracy", "count")
    return {
        "accuracy": float(np.mean(right(logits, labels))),
        "top5_accuracy": float(np.mean((ranks < 5) & ~np.isnan(own[:, 0]))),
        "nll": nll(logits, labels),
        "ece": ece(probabilities, labels),
        "scaled_nll": nll(scaled, labels),
        "scaled_ece": ece(np.exp(log_probabilities(scaled)), labels),
        "temperatures": temperatures,
        "mean_winning_probability": float(probabilities.max(axis=1).mean()),
        "bins": {
            name: values[bins[2] > 0].tolist()
            for name, values in zip(names, bins, strict=True)
        },
    }


def right(predictions, labels):
    """Whether each row of logits or probabilities is right.

    A row with nan, of a run that diverged, is not.
    """
    known = ~np.isnan(predictions).any(axis=1)
    return known & (predictions.argmax(axis=1) == labels)


def log_probabilities(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def nll(logits, labels):
    return float(nll_of_each(logits, labels).mean())


def nll_of_each(logits, labels):
    return -log_probabilities(logits)[np.arange(len(labels)), labels]


def ece(probabilities, labels):
    return ece_of(probabilities.max(axis=1), right(probabilities, labels))


def ece_of(confidence, correct, weights=None):
    """ECE from the probability of each predicted class, and whether it is right."""
    confidence, accuracy, count = binned(confidence, correct, weights)
    gaps = np.abs(confidence - accuracy)[count > 0] * count[count > 0]
    return float(gaps.sum() / count.sum())


def calibration(probabilities, labels):
    """Mean confidence, accuracy (nan where empty) and count of each bin."""
    return binned(probabilities.max(axis=1), right(probabilities, labels))


def binned(confidence, correct, weights=None):
    weights = np.ones(len(correct), int) if weights is None else weights
    finite = np.nan_to_num(confidence)  # nan, after divergence, is in the first bin
    bin_of = np.clip(np.ceil(finite * BINS).astype(int) - 1, 0, BINS - 1)

    def total(values):
        return np.bincount(bin_of, values * weights, BINS)

    count = total(1).astype(weights.dtype)
    with np.errstate(invalid="ignore"):
        return total(confidence) / count, total(correct) / count, count


def temperature_scaled(logits, labels):
    """Divide each half of the logits by the best temperature of the other half.

    This separates a network that is underconfident or overconfident from one that is
    wrong. The halves are the even and the odd samples; the temperature of each
    minimizes its NLL (arXiv 1706.04599, section 4.2). Returns the logits and the two
    temperatures.
    """
    logits = np.asarray(logits, "float64")
    scaled, temperatures = np.empty_like(logits), []
    for half in (0, 1):
        held_out = slice(1 - half, None, 2)
        fit = optimize.minimize_scalar(
            lambda log_t, x=logits[held_out], y=labels[held_out]: nll(
                x / np.exp(log_t), y
            ),
            bounds=(-4, 4),
            method="bounded",
        )
        temperatures.append(float(np.exp(fit.x)))
        scaled[half::2] = logits[half::2] / temperatures[-1]
    return scaled, temperatures
