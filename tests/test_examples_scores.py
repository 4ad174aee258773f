"""Scores, comparisons and records of the training programs."""

import numpy as np
import pytest

for package in ("scipy", "matplotlib"):
    pytest.importorskip(package)

from scipy import stats  # noqa: E402
from training import compare, pictures, record  # noqa: E402
from training.scores import scores, temperature_scaled  # noqa: E402

pytestmark = pytest.mark.once


def test_scores_of_a_known_case():
    # Two samples of confidence .8, one right; one of .6 that is right.
    p = np.array([[0.8, 0.2, 0], [0.8, 0.2, 0], [0.4, 0.6, 0]]) + 1e-12
    found = scores(np.log(p) + 5, np.array([0, 1, 1]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["ece"] == pytest.approx((2 * 0.3 + 0.4) / 3)
    assert found["nll"] == pytest.approx(-np.log([0.8, 0.2, 0.6]).mean())
    assert found["mean_winning_probability"] == pytest.approx(2.2 / 3)
    logits = -np.arange(8.0)[None].repeat(8, axis=0)
    top5 = scores(logits, np.arange(8))["top5_accuracy"]
    assert top5 == pytest.approx(5 / 8)
    for diverged in (np.full((8, 8), np.nan), np.full((8, 3), np.nan)):
        found = scores(diverged, np.arange(8) % 3)
        assert found["accuracy"] == found["top5_accuracy"] == 0


def test_an_epoch_that_was_repeated_counts_once(tmp_path):
    lines = ["epoch,loss", "0,1.0", "1,0.5", "1,0.4", "2,0.3", ""]
    path = tmp_path / "history.csv"
    path.write_text("\n".join(lines))
    record.drop_repeated_epochs(path)
    assert record.read_history(tmp_path)["loss"] == [1.0, 0.4, 0.3]
    assert path.read_text().split() == lines[:2] + lines[3:5]
    assert list(tmp_path.iterdir()) == [path]


def test_an_epoch_without_validation_has_no_test_scores(tmp_path):
    """A resumed run may log fewer columns."""
    lines = ["epoch,loss,val_loss", "0,1.0,NA", "1,0.5,0.7", "2,0.4,", "3,0.4", ""]
    (tmp_path / "history.csv").write_text("\n".join(lines))
    history = record.read_history(tmp_path)
    np.testing.assert_array_equal(history["val_loss"], [np.nan, 0.7, np.nan, np.nan])
    history["accuracy"] = history["val_accuracy"] = [0.0, 0.0, 0.0, 0.0]
    for validates, name in ((False, "test"), (True, "validation")):
        curves = record.curves_of(history, validates)
        lines = pictures.draw_curves("", curves).axes[1].lines
        assert [len(line.get_xdata()) for line in lines] == [4, 1]
        assert list(curves)[1] == name


def test_the_bins_of_the_scores_give_the_calibration_error(rng):
    logits, labels = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    found = scores(logits, labels)
    p, right, count = map(np.array, found["bins"].values())
    assert count.sum() == 200 and (count > 0).all()
    assert np.sum(count * abs(p - right)) / 200 == pytest.approx(found["ece"])
    assert np.sum(count * right) / 200 == pytest.approx(found["accuracy"])


def test_one_temperature_mends_underconfidence_and_nothing_else(rng):
    """Logits that are right up to a factor, compared with noise."""
    logits = 2 * rng.normal(size=(4000, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in p])
    right = scores(logits, labels)
    underconfident = scores(logits / 4, labels)
    assert (
        underconfident["nll"] > right["nll"] + 0.2
        and underconfident["ece"] > right["ece"] + 0.1
    )
    assert underconfident["scaled_nll"] == pytest.approx(right["scaled_nll"], abs=1e-4)
    assert underconfident["scaled_ece"] < 0.03
    np.testing.assert_allclose(underconfident["temperatures"], 0.25, rtol=0.1)
    assert underconfident["accuracy"] == right["accuracy"]
    wrong = scores(rng.normal(size=(4000, 5)), labels)
    assert wrong["scaled_nll"] > np.log(5) - 0.02


def test_a_temperature_is_fitted_on_the_half_that_it_does_not_scale(rng):
    """Even samples are overconfident by a factor of four, odd ones are calibrated."""
    logits = 2 * rng.normal(size=(8000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in p])
    logits[0::2] *= 4
    scaled, (even, odd) = temperature_scaled(logits, labels)
    assert even == pytest.approx(1, rel=0.1) and odd == pytest.approx(4, rel=0.1)
    np.testing.assert_allclose(scaled[0::2], logits[0::2] / even)
    np.testing.assert_allclose(scaled[1::2], logits[1::2] / odd)


def test_the_interval_is_that_of_a_paired_t_test(rng):
    a, b = rng.normal(size=(2, 5))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, half = compare.interval(a - b)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert compare.interval([1.0]) == (1.0, float("inf"))


def test_differences_are_of_the_seeds_that_both_have_and_bold_beyond_zero():
    base = {0: 1.0, 1: 2.0, 2: 3.0}
    better = compare.difference({0: 2.0, 1: 3.1, 2: 3.9, 7: 99.0}, base, 1)
    assert better.startswith("**+1.0 [")
    assert compare.difference({0: 0.0, 1: 3.0, 2: 3.1}, base, 1).startswith("+0.0 [-")
    assert compare.difference({2: 4.0}, base, 1) == "+1.0"
    assert compare.difference({7: 4.0}, base, 1) == "-"
