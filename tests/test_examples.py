"""Each example runs end to end, as a user starts it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import tensorflow as tf
from tolerances import assert_close

ROOT = Path(__file__).parent.parent
PNG = b"\x89PNG\r\n\x1a\n"

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import quickstart  # noqa: E402

pytestmark = pytest.mark.once


def run(*arguments, folder):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=processes.LONGEST,
    )


PROGRAM = str(ROOT / "examples" / "quickstart.py")


def run_and_train_one_again():
    """Run eagerly, since the graphs of four networks cost more than their few steps."""
    tf.config.run_functions_eagerly(True)
    args = quickstart.parse_arguments(["--smoke"])
    args.train_examples = 100
    quickstart.main(args)
    (images, labels), test = quickstart.load_digits(args.train_examples)
    rng = np.random.default_rng(args.seed)
    labels = quickstart.data.with_label_noise(labels, args.wrong_labels, rng)
    train = images, labels
    _, result, _ = quickstart.train_and_test("MixAvg", train, test, args.seed, args)
    print(json.dumps(result))


def assert_complete(folder, output):
    report = json.loads((folder / "result.json").read_text())
    assert [row["method"] for row in report["results"]] == list(quickstart.METHODS)
    for row in report["table"]:
        for cell in row:
            assert cell in output
    for row in report["results"]:
        assert 0 <= row["test_accuracy"] <= 1
        assert 0 < row["at_best_temperature"] <= row["negative_log_likelihood"] + 1e-3
    for name in ("pairs", "soft_labels", "training"):
        assert (folder / f"{name}.png").read_bytes().startswith(PNG)
    return report


def assert_figures_close(one, other):
    assert one.keys() == other.keys()
    for name in one.keys() - {"seconds"}:
        if isinstance(one[name], str):
            assert one[name] == other[name], name
        else:
            assert_close(one[name], other[name], trained=True, of=name)


@pytest.mark.new_process
def test_the_quickstart_runs_and_repeats_its_figures(tmp_path):
    """Train one of its methods again, by itself, and compare."""
    output = processes.run(run_and_train_one_again, folder=tmp_path)
    assert "the figures mean nothing" in output
    again = output.splitlines()[-1]
    report = assert_complete(tmp_path / "runs/quickstart", output)
    rows = report["results"]
    assert len({row["negative_log_likelihood"] for row in rows}) == 3  # they differ
    assert_figures_close(json.loads(again), rows[2])


def test_the_learning_rate_rises_and_falls_to_zero_with_the_last_step():
    schedule = quickstart.cosine_schedule(0.1, steps=600)
    rates = [float(schedule(step)) for step in (0, 30, 60, 330, 600)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.05, 0], atol=1e-7)


def test_help_comes_without_tensorflow_and_its_log(tmp_path):
    result = run(PROGRAM, "--help", folder=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert "--wrong-labels" in result.stdout


def test_the_table_shows_mean_and_spread_over_runs():
    figures = {"negative_log_likelihood": 0.5, "at_best_temperature": 0.25}
    results = [
        {"method": method, "test_accuracy": accuracy, **figures}
        for method in quickstart.METHODS
        for accuracy in (0.4, 0.6)
    ]
    rows = quickstart.table_of(results)
    expected = ["50.0 ± 14.1", "0.500 ± 0.000", "0.250 ± 0.000"]
    assert rows[1] == ["plain training", *expected]
    assert quickstart.table_of(results[::2])[2] == ["MixUp", "40.0", "0.500", "0.250"]


def test_accuracy_and_likelihood_of_a_known_case():
    logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    figures = quickstart.figures_of(logits.astype("float32"), np.array([0, 1]))
    assert figures["test_accuracy"] == 0.5
    expected = -(np.log(0.5) + np.log(0.125)) / 2
    assert abs(figures["negative_log_likelihood"] - expected) < 1e-6


def test_the_best_temperature_mends_confidence_and_nothing_else():
    """Of two classes, right three times in four: the best confidence is 3/4."""
    labels = np.array([0, 0, 0, 1])
    for scale in (0.3, 3.0):
        logits = np.tile([scale, 0.0], (4, 1)).astype("float32")
        best = quickstart.figures_of(logits, labels)["at_best_temperature"]
        expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
        assert expected <= best < expected + 1e-3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--wrong-labels", "1.5"], "--wrong-labels must be in [0, 1), not 1.5"),
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
    options = re.findall(r"^  --.*?(?=^  --|^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(options) > 8
    for option in options:
        assert "(default" in option or "only shows" in " ".join(option.split()), option
