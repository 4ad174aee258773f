"""Each example runs, end to end, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data" / "tfds"
PNG = b"\x89PNG\r\n\x1a\n"

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

sys.path.insert(0, str(ROOT / "examples"))
import quickstart  # noqa: E402
from small_data import write_cifar10  # noqa: E402


def run(*arguments, folder):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def assert_complete(folder, output):
    report = json.loads((folder / "result.json").read_text())
    assert [row["method"] for row in report["results"]] == list(quickstart.METHODS)
    for row in report["table"]:
        for cell in row:
            assert cell in output
    for row in report["results"]:
        assert 0 <= row["test_accuracy"] <= 1
        assert row["negative_log_likelihood"] > 0
        assert 0 <= row["expected_calibration_error"] <= 1
    for name in ("pairs", "soft_labels", "training"):
        assert (folder / f"{name}.png").read_bytes().startswith(PNG)
    return report


def test_the_quickstart_runs_and_repeats_its_figures(tmp_path):
    reports = []
    for _ in range(2):
        result = run("--smoke", folder=tmp_path)
        assert result.returncode == 0, result.stderr
        reports.append(assert_complete(tmp_path / "runs/quickstart", result.stdout))
    for report in reports:
        del report["table"]
        for row in report["results"]:
            del row["seconds"]
    assert reports[0] == reports[1]
    rows = reports[0]["results"]
    assert rows[0] != rows[1] != rows[2]  # the methods differ


def test_the_quickstart_reads_cifar10_through_tfds(tmp_path):
    if not (SHARED / "cifar10").exists():
        pytest.skip("no CIFAR-10 at hand")
    pytest.importorskip("tensorflow_datasets")
    arguments = ["--dataset", "cifar10", "--data-dir", str(SHARED), "--smoke"]
    result = run(*arguments, "--out", "cifar", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    report = assert_complete(tmp_path / "cifar", result.stdout)
    assert report["train_images"] == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TFDS and protobuf
def test_cifar10_is_read_from_the_data_dir_given(tmp_path):
    """The real loading path, on a small CIFAR-10 that this test writes."""
    images = write_cifar10(tmp_path, train=20, test=10)
    train, test, names = quickstart.load_cifar10(tmp_path)
    np.testing.assert_array_equal(train[0], images[:20])
    np.testing.assert_array_equal(test[1], np.arange(20, 30) % 10)
    assert len(names) == 10


def test_few_of_each_class_are_balanced_and_seeded():
    labels = np.repeat(np.arange(4), [50, 30, 20, 10])
    images = np.arange(len(labels))
    chosen, numbers = quickstart.few_of_each_class(images, labels, 22, seed=0)
    assert np.bincount(numbers).tolist() in ([6, 6, 5, 5], [6, 5, 6, 5]) or (
        sorted(np.bincount(numbers)) == [5, 5, 6, 6]
    )
    assert len(set(chosen)) == 22
    np.testing.assert_array_equal(labels[chosen], numbers)
    again, _ = quickstart.few_of_each_class(images, labels, 22, seed=0)
    other, _ = quickstart.few_of_each_class(images, labels, 22, seed=1)
    np.testing.assert_array_equal(chosen, again)
    assert set(chosen) != set(other)


def test_the_table_shows_mean_and_spread_over_runs():
    figures = dict.fromkeys((name for name, *_ in quickstart.COLUMNS), 0.5)
    results = [
        {"method": method, **figures, "seconds": seconds}
        for method in quickstart.METHODS
        for seconds in (1.0, 3.0)
    ]
    rows = quickstart.table_of(results)
    assert rows[1] == ["plain", "50.00 ± 0.00", "0.5000 ± 0.0000", "50.00 ± 0.00",
                       "2.0 ± 1.4"]  # fmt: skip
    assert quickstart.table_of(results[::2])[2][4] == "1.0"


def test_accuracy_and_likelihood_of_a_known_case():
    logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    figures = quickstart.figures_of(logits.astype("float32"), np.array([0, 1]))
    assert figures["test_accuracy"] == 0.5
    expected = -(np.log(0.5) + np.log(0.125)) / 2
    assert abs(figures["negative_log_likelihood"] - expected) < 1e-6


def test_expected_calibration_error_of_a_known_case():
    # In one bin confidence .8 and accuracy .5, in another .6 and 1: (2*.3 + .4) / 3.
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    error = quickstart.expected_calibration_error(probabilities, np.array([0, 1, 1]))
    assert abs(error - (2 * 0.3 + 0.4) / 3) < 1e-12


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--dataset", "mnist"], "invalid choice: 'mnist'"),
        (["--rate", "half"], "--rate: invalid float value"),
    ],
)
def test_wrong_flags_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        quickstart.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        quickstart.parse_arguments(["--help"])
    text = capsys.readouterr().out
    options = text[text.index("options:") :]
    for line in options.splitlines():
        if line.strip().startswith("--"):
            after = options[options.index(line) :]
            assert "(default" in after or "only shows" in after
