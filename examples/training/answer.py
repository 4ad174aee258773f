"""The answer of several runs of several methods: differences, verdict, next step.

`results` is `{method: [Run, ...]}`, with the same rounds for each method, in order.
"""

import functools
import json
from dataclasses import dataclass

import numpy as np
from scipy import stats

from training import compare, record, scores
from training.methods import in_words
from training.networks import NONE

PLAIN = "erm"
OURS = "mixavg", "mixavg_local"  # the first that has run is judged
MEMORISED = 0.9  # training accuracy from which plain training memorises
HARDLY_HELPS = "a regularizer hardly helps unless many labels are wrong"
STILL_FALLS = 0.9  # ratio of the last loss to that a quarter of the epochs earlier
SMALL = 1.0  # points of accuracy that are not worth another run
RESAMPLES = 500  # of the bootstrap for the calibration error
LARGER = {
    "fast_8": "fast_16",
    "fast_16": "fast",
    "fast": "fast_64",
    "tiny": "small",
    "small": "preact_resnet18",
}


@dataclass(eq=False)
class Run:
    """One trained network, the images that tested it, and its predictions."""

    images: np.ndarray  # numbers of the test images
    labels: np.ndarray
    logits: np.ndarray
    history: dict
    result: dict


def read_run(folder, images):
    saved = np.load(folder / "predictions.npz")
    return Run(
        images,
        saved["labels"],
        saved["logits"],
        record.read_history(folder),
        json.loads((folder / "result.json").read_text()),
    )


# --- Measures ------------------------------------------------------------------------


def right(run):
    return 100.0 * scores.right(run.logits, run.labels)


def nll(run):
    return scores.nll_of_each(run.logits, run.labels)


@functools.cache
def nll_scaled(run):
    scaled, _ = scores.temperature_scaled(run.logits, run.labels)
    return scores.nll_of_each(scaled, run.labels)


@functools.cache
def winning_probabilities(run):
    """A row for each image: the highest probability, and whether it is right."""
    p = np.exp(scores.log_probabilities(run.logits))
    return np.stack([p.max(axis=1), p.argmax(axis=1) == run.labels], axis=1)


@dataclass(frozen=True)
class Measure:
    """A figure for each image, of which tables show the mean."""

    name: str
    of_images: object
    digits: int
    better: int  # 1 if more is better, -1 if less is

    def text(self, value, sign=""):
        return compare.number(value, self.digits, sign)

    def pooled(self, runs):
        """The measure over all predictions of all runs."""
        return float(np.concatenate([self.of_images(run) for run in runs]).mean())


class CalibrationError(Measure):
    def pooled(self, runs, weights=None):
        winning = np.concatenate([winning_probabilities(run) for run in runs])
        return 100 * scores.ece_of(*winning.T, weights)


ACCURACY = Measure("accuracy, %", right, 2, 1)
NLL = Measure("NLL, nats", nll, 3, -1)
NLL_SCALED = Measure("NLL after one temperature", nll_scaled, 3, -1)
ECE = CalibrationError("ECE, %", winning_probabilities, 1, -1)
MEASURES = (ACCURACY, NLL, NLL_SCALED, ECE)


# --- Differences ---------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The difference of two methods in one measure, with half of two 95 % intervals.

    The interval over the test images covers the choice of images, the one over the runs
    covers the choice of seeds. The wider one counts.
    """

    measure: Measure
    mean: float
    over_images: float
    over_runs: float

    @property
    def half(self):
        return max(self.over_images, self.over_runs)

    @property
    def says(self):
        """1 if better, -1 if worse, 0 if the interval includes zero."""
        if not abs(self.mean) > self.half:  # nan too, of a run that diverged
            return 0
        return self.measure.better if self.mean > 0 else -self.measure.better

    def __str__(self):
        mean, half = self.mean, self.half
        if not np.isfinite(half):
            return self.measure.text(mean, "+")
        low, high = (self.measure.text(mean + side * half, "+") for side in (-1, 1))
        return f"{self.measure.text(mean, '+')} [{low}, {high}]"


def difference(ours, other, measure):
    """`ours` minus `other`. Each pair of runs was tested on the same images."""
    return _difference(tuple(ours), tuple(other), measure)


@functools.cache
def _difference(ours, other, measure):
    pairs = list(zip(ours, other, strict=True))
    if isinstance(measure, CalibrationError):
        of_runs = [measure.pooled([a]) - measure.pooled([b]) for a, b in pairs]
        mean = measure.pooled(ours) - measure.pooled(other)
        over_images = _resampled(ours, other, measure)
    else:
        each = [measure.of_images(a) - measure.of_images(b) for a, b in pairs]
        of_runs = [values.mean() for values in each]
        of_images = _mean_of_each_image([run.images for run in ours], each)
        n = len(of_images)
        error = np.std(of_images, ddof=1) / np.sqrt(n) if n > 1 else np.inf
        mean = float(of_images.mean())
        over_images = float(stats.t.ppf(0.975, max(n - 1, 1)) * error)
    return Difference(measure, mean, over_images, compare.interval(of_runs)[1])


def _mean_of_each_image(images, values):
    _, places = np.unique(np.concatenate(images), return_inverse=True)
    return np.bincount(places, np.concatenate(values)) / np.bincount(places)


def _resampled(ours, other, measure):
    """Half the interval of a measure that is not a mean: bootstrap over images."""
    rng = np.random.default_rng(0)
    _, places = np.unique(
        np.concatenate([run.images for run in ours]), return_inverse=True
    )
    found = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, places.max() + 1, places.max() + 1))
        times = np.pad(times, (0, places.max() + 1 - len(times)))[places]
        found.append(measure.pooled(ours, times) - measure.pooled(other, times))
    return float(stats.norm.ppf(0.975) * np.std(found, ddof=1))


# --- Tables --------------------------------------------------------------------------


def absolute(results):
    """Rows of strings: the figures of each method, with their spread over runs."""
    rows = [
        ["method", *(m.name for m in MEASURES), "training accuracy, %", "s an epoch"]
    ]
    for method, runs in results.items():
        row = [in_words(method)]
        for measure in MEASURES:
            of_runs = [measure.pooled([run]) for run in runs]
            mean = measure.pooled(runs)
            row.append(compare.mean_and_spread(of_runs, measure.digits, mean))
        row.append(f"{100 * training_accuracy(runs):.1f}")
        seconds = [run.result["seconds_per_epoch"] for run in runs]
        rows.append([*row, f"{np.median(seconds):.1f}"])
    return rows


def differences(results):
    """Rows of strings: the candidate minus plain training, and minus the best rival."""
    method, rival = candidate(results), best_rival(results)
    others = [PLAIN, *([rival] if rival else [])]
    rows = [[f"{in_words(method)} minus", *map(in_words, others)]]
    for measure in MEASURES:
        row = [measure.name]
        for other in others:
            of_pair = difference(results[method], results[other], measure)
            row.append(f"**{of_pair}**" if of_pair.says else str(of_pair))
        rows.append(row)
    return rows


def candidate(results):
    """The method that the verdict judges."""
    ours = [method for method in OURS if method in results]
    return ours[0] if ours else most_accurate(results, {PLAIN})


def best_rival(results):
    """The most accurate of the other methods, or None."""
    return most_accurate(results, {PLAIN, candidate(results)})


def most_accurate(results, but):
    others = [method for method in results if method not in but]
    means = {method: ACCURACY.pooled(results[method]) for method in others}
    return max(means, key=means.get, default=None)


# --- The verdict ---------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    title: str
    paragraphs: dict  # by heading
    changes: dict  # of options, for the next command


def verdict(results, args):
    why, step, changes = next_step(results, args)
    return Verdict(
        title(results),
        {
            "Accuracy": accuracy_in_words(results),
            "Probabilities": probabilities_in_words(results),
            "Why": why,
            "Next": step,
        },
        changes,
    )


def title(results):
    """The recommendation in one line."""
    ours, rival = candidate(results), best_rival(results)

    def says(method, other, measure):
        return difference(results[method], results[other], measure).says

    best = [m for m in (ours, rival) if m and says(m, PLAIN, ACCURACY) > 0]
    best.sort(key=lambda method: -ACCURACY.pooled(results[method]))
    if len(best) == 2 and not says(*best, ACCURACY):
        first, second = map(in_words, best)
        return f"Use {first} or {second}: their accuracy differs within the noise"
    if best:
        return f"Use {in_words(best[0])}"
    if says(ours, PLAIN, ACCURACY) < 0:
        return "Stay with plain training"
    of_probabilities = says(ours, PLAIN, NLL_SCALED)
    if of_probabilities > 0:
        return f"Use {in_words(ours)} for its probabilities; accuracy is undecided"
    if of_probabilities < 0:
        return "Stay with plain training: its probabilities are better"
    return f"Not decided: {CAUSES[cause(results)]}"


def accuracy_in_words(results):
    ours, rival = candidate(results), best_rival(results)
    sentences = []
    for other in filter(None, (PLAIN, rival)):
        of_pair = difference(results[ours], results[other], ACCURACY)
        name = in_words(other)
        if other == rival:
            name += ", the most accurate of the other methods,"
        said = {1: "more", -1: "less"}.get(of_pair.says)
        if said:
            text = f"is {said} accurate than {name} by {abs(of_pair.mean):.1f} points"
        else:
            text = f"and {name} do not differ in accuracy beyond the noise"
        if np.isfinite(of_pair.half):
            low, high = of_pair.mean - of_pair.half, of_pair.mean + of_pair.half
            text += f" (95 % interval {low:+.1f} to {high:+.1f} points)"
        else:
            text += f" ({of_pair.mean:+.1f} points; an interval needs three runs)"
        sentences.append(f"{in_words(ours)} {text.replace(',,', ',')}.")
    return " ".join(sentences)


def probabilities_in_words(results):
    ours, rival = candidate(results), best_rival(results)
    sentences = []
    for other in filter(None, (PLAIN, rival)):
        parts = []
        for measure in (NLL, NLL_SCALED, ECE):
            of_pair = difference(results[ours], results[other], measure)
            a, b = (measure.text(measure.pooled(results[m])) for m in (ours, other))
            said = {1: "better", -1: "worse", 0: "undecided"}[of_pair.says]
            name, *unit = measure.name.split(",")
            parts.append(f"{name} {a} against {b}{' %' * (unit == [' %'])} ({said})")
        sentences.append(f"Against {in_words(other)}: {', '.join(parts)}.")
    raw, scaled = (
        difference(results[ours], results[PLAIN], m).says for m in (NLL, NLL_SCALED)
    )
    if raw > 0 and scaled <= 0:
        sentences.append(
            "A temperature fitted on held-out images does as much for plain training."
        )
    return " ".join(sentences)


def training_accuracy(runs):
    """Mean accuracy in the last epoch, on the training images as mixed."""
    return float(np.mean([run.history["accuracy"][-1] for run in runs]))


def memorises(results):
    return training_accuracy(results[PLAIN]) >= MEMORISED


def still_falls(runs):
    losses = [run.history["loss"] for run in runs]
    before = [loss[-1 - max(1, len(loss) // 4)] for loss in losses if len(loss) > 1]
    return bool(before) and np.mean(
        [loss[-1] for loss in losses if len(loss) > 1]
    ) < STILL_FALLS * np.mean(before)


def cause(results):
    """The cause of the outcome, in one word."""
    plain = results[PLAIN]
    found = difference(results[candidate(results)], plain, ACCURACY)
    if not memorises(results):
        return "epochs" if still_falls(plain) else "network"
    if found.says:
        return "answered"
    if found.half <= SMALL:
        return "small"
    return "runs" if found.over_runs > found.over_images else "images"


CAUSES = {  # of an undecided comparison
    "epochs": "plain training underfits",
    "network": "plain training underfits",
    "small": f"any difference is smaller than {SMALL:g} point",
    "runs": "too few runs",
    "images": "too few test images",
}


def next_step(results, args):
    """The cause in words, the next step, and the options that it changes."""
    plain, why = results[PLAIN], cause(results)
    found = difference(results[candidate(results)], plain, ACCURACY)
    tested = len(np.unique(np.concatenate([run.images for run in plain])))
    trained = 100 * training_accuracy(plain)
    regime = (
        f"Plain training reaches a training accuracy of {trained:.1f} % and a test "
        f"accuracy of {ACCURACY.pooled(plain):.1f} %: it "
    )
    if memorises(results):
        regime += "memorises"
        regime += "." if args.weights != NONE else ", which is where regularizers help."
    else:
        regime += f"underfits, where {HARDLY_HELPS}."
    if why == "epochs":
        more = 3 * args.epochs
        return (
            f"{regime} Too few epochs: after {args.epochs} its loss still falls.",
            f"Train for {more} epochs:",
            {"epochs": more},
        )
    if why == "network":
        regime += " Its loss has stopped falling: "
        if args.weights != NONE:
            rate = 3 * args.learning_rate
            return (
                f"{regime}the learning rate is too small, or the pretrained features "
                "do not suit these images.",
                f"Fine-tune at a learning rate of {rate:g}:",
                {"learning_rate": f"{rate:g}"},
            )
        regime += "the network is too small."
        if args.network not in LARGER:
            return regime, *fine_tune(args)
        larger = LARGER[args.network]
        return regime, f"Train a larger network, {larger}:", {"network": larger}
    if why == "small":
        return f"{regime} Any difference is below {SMALL:g} point.", *fine_tune(args)
    if why == "runs":
        runs, more = len(plain), 2 * max(len(plain), compare.PAIRS)
        return (
            f"{regime} Too few runs: {count(runs, 'run')} of each method"
            + (
                f" leave ± {found.over_runs:.1f} points, {tested:,} test images "
                f"± {found.over_images:.1f}."
                if np.isfinite(found.over_runs)
                else f", and an interval needs {compare.PAIRS}."
            ),
            f"Make {more} runs of each method; finished runs are kept:",
            {"runs": more},
        )
    if why == "images":
        regime += (
            f" Too few test images: {tested:,} leave ± {found.over_images:.1f} points, "
            "however many runs you make. Four times as many would halve that."
        )
        if args.validation:
            return (
                regime,
                f"Test each image of {args.folder}, by cross-validation:",
                {"validation": None},
            )
    return regime, *fine_tune(args)


def fine_tune(args):
    """The next step once the question is answered, or if it needs more images."""
    if args.weights == NONE:
        return (
            "Fine-tune a network pretrained on ImageNet; Keras downloads its weights:",
            {
                "network": "EfficientNetV2B0",
                "weights": "imagenet",
                "learning_rate": None,  # fine-tuning has another optimizer
            },
        )
    return (
        "To confirm the answer with other seeds and other parts of the images (how to "
        "fine-tune in your own program: docs/recipes/transfer.md):",
        {"runs": 2 * args.runs, "all_runs": True},
    )


def no_more_runs(results, args):
    """Why further runs would not help, or None.

    After the first round: does plain training underfit? Later, once every image has
    been tested: are there too few images?
    """
    done = len(results[PLAIN])
    if done == 1 and not memorises(results):
        return f"Plain training underfits: the answer would be that {HARDLY_HELPS}."
    whole = args.validation or done % args.folds == 0
    if done >= compare.PAIRS and whole:
        found = difference(results[candidate(results)], results[PLAIN], ACCURACY)
        if found.over_images >= found.over_runs:
            too_few = "" if found.says else ", and these are too few"
            return f"More runs would test the same images again{too_few}."
    return None


def count(number, thing):
    return f"{number:,} {thing}" + "s" * (number != 1)
