"""The instrument of the study: grids, experiments, statistics, and the report."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

ROOT = Path(__file__).parent.parent
GRIDS = sorted((ROOT / "benchmarks/grids").glob("*.toml"))

for package in ("sklearn", "scipy", "matplotlib", "tensorflow_datasets"):
    pytest.importorskip(package)

sys.path[:0] = [str(ROOT / "examples"), str(ROOT)]
import cifar  # noqa: E402
from scipy import stats  # noqa: E402

from benchmarks import accuracy, report, variants  # noqa: E402
from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy  # noqa: E402

# Of TFDS and protobuf.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Put back what experiments change."""
    for owner, names in (
        (cifar, ["training_batches", "mix", "loss_and_callbacks", "NETWORKS"]),
        (cifar.report, ["callbacks"]),
        (variants.equations, ["updated_table"]),
        (variants.soft_label_table.SoftLabelTable, ["targets"]),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))


def arguments(**changes):
    return argparse.Namespace(
        **{"seed": 0, "batch_size": 4, "rate": 0.5, "epochs": 10, **changes}
    )


# --- Grids ---------------------------------------------------------------------------

SMALL_GRID = """
title = "two"
seeds = [3, 5]
baselines = ["erm"]
[common]
smoke = true
method = "erm"
[settings.digits]
[settings.noise]
label-noise = 0.5
[methods.erm]
[methods."other name"]
method = "mixavg"
label-noise = 0.25
"""


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_run_of_every_grid_is_one_that_the_program_takes(path, tmp_path):
    grid, runs = accuracy.read_grid(path)
    cells = len(grid["settings"]) * len(grid["methods"])
    assert len({run.name for run in runs}) == len(runs) == cells * len(grid["seeds"])
    assert set(grid["baselines"]) <= set(grid["methods"])
    for run in runs:
        flags, experiments = variants.split({**run.options, "out": tmp_path / "new"})
        args = cifar.parse_arguments(flags)  # exits if it does not know one
        variants.check(experiments, args.method)
        assert set(experiments) <= set(variants.EXPERIMENTS)


def test_a_grid_is_read_seed_by_seed_and_later_options_win(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(SMALL_GRID)
    _, runs = accuracy.read_grid(path)
    assert [run.name for run in runs] == [
        f"{setting}/{method}-{seed}"
        for seed in (3, 5)
        for setting in ("digits", "noise")
        for method in ("erm", "other name")
    ]
    assert runs[2].options == {"smoke": True, "method": "erm", "label-noise": 0.5}
    assert runs[3].options["label-noise"] == 0.25


@pytest.mark.parametrize(
    "text, expected",
    [("title = 't'", "`seeds` is missing"), ("[setings.a]", "setings")],
)
def test_a_wrong_grid_is_refused_by_name(tmp_path, text, expected):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=expected):
        accuracy.read_grid(path)


def start(grid, folder, *flags):
    script = ROOT / "benchmarks/accuracy.py"
    return subprocess.run(
        [sys.executable, script, grid, "--out", "out", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_runs_are_recorded_and_never_repeated(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(SMALL_GRID.replace("[3, 5]", "[3]"))
    done = tmp_path / "out/digits/erm-3.json"
    done.parent.mkdir(parents=True)
    options = {"smoke": True, "method": "erm"}
    done.write_text(json.dumps({"options": options, "seed": 3, "finished": "before"}))
    result = start("grid.toml", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1 of 4 runs are there" in result.stdout
    assert "2 to go, about" in result.stdout
    assert json.loads(done.read_text())["finished"] == "before"
    record = json.loads((tmp_path / "out/noise/other name-3.json").read_text())
    assert record["experiments"] == {"label-noise": 0.25}
    assert record["settings"]["method"] == "mixavg" and record["seed"] == 3
    assert len(record["history"]["loss"]) == 2
    np.testing.assert_allclose(np.sum(record["table"], axis=1), 1, atol=1e-4)
    assert str(tmp_path) not in json.dumps(record)
    again = start("grid.toml", tmp_path)
    assert "4 of 4 runs are there" in again.stdout
    path.write_text(path.read_text().replace("0.25", "0.125"))
    changed = start("grid.toml", tmp_path)
    assert changed.returncode and "other options than grid.toml has" in changed.stderr


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(SMALL_GRID.replace("[3, 5]", "[3]") + 'rate = "half"\n')
    result = start("grid.toml", tmp_path)
    assert result.returncode != 0
    assert "2 runs failed: " in result.stderr and "digits/other name-3" in result.stderr
    assert (tmp_path / "out/digits/erm-3.json").exists()


def test_a_run_trains_on_the_backend_that_its_grid_names(tmp_path):
    pytest.importorskip("jax")
    grid = SMALL_GRID.replace("[3, 5]", "[3]")
    grid = grid.replace("[settings.noise]\nlabel-noise = 0.5\n", "")
    grid = grid.replace("[common]", '[common]\nbackend = "jax"')
    (tmp_path / "grid.toml").write_text(grid.split('[methods."other')[0])
    result = start("grid.toml", tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "out/digits/erm-3.json").read_text())
    assert record["backend"] == record["settings"]["backend"] == "jax"


def test_an_experiment_that_would_change_nothing_is_refused():
    for name, method in (
        ("weight-schedule", "mixavg_local"),
        ("pairs-off-for-last", "ols"),
        ("midpoint-head", "erm"),
    ):
        with pytest.raises(SystemExit, match=f"{name} changes nothing for {method}"):
            variants.check({"label-noise": 0.2, name: 1}, method)


def test_a_run_of_another_grid_with_the_same_options_is_taken_over(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path)
    first = accuracy.Run("a", "b", 1, {"epochs": 2})
    done = tmp_path / "grid" / f"{first.name}.json"
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({**vars(first), "test": 7}))
    same, other = (accuracy.Run("c", "d", seed, {"epochs": 2}) for seed in (1, 2))
    accuracy.copy_equal_runs([same, other], tmp_path / "new")
    taken = json.loads((tmp_path / "new/c/d-1.json").read_text())
    assert taken == {**vars(same), "test": 7}
    assert not (tmp_path / "new/c/d-2.json").exists()


# --- Experiments ---------------------------------------------------------------------


def training_labels(labels, args):
    """What is left of the labels, by number of the image, when batches are made."""
    images = np.zeros((len(labels), 32, 32, 3), "uint8")
    images[:, :, :, 0] = np.arange(len(labels))[:, None, None] % 256
    images[:, :, :, 1] = np.arange(len(labels))[:, None, None] // 256
    found = {}
    for x, y in cifar.training_batches(images, labels, args):
        numbers = x[:, 0, 0, 0].numpy() + 256 * x[:, 0, 0, 1].numpy().astype(int)
        found |= dict(zip(numbers.tolist(), y.numpy().tolist(), strict=True))
    return found


def test_label_noise_changes_exactly_that_share_to_any_other_class():
    args = arguments()
    variants.label_noise(0.4, args)
    labels = np.arange(1000) % 10
    found = training_labels(labels, args)
    wrong = [(labels[i], y) for i, y in found.items() if labels[i] != y]
    assert len(found) == 1000 and len(wrong) == 400
    steps = np.bincount([(y - true) % 10 for true, y in wrong], minlength=10)
    assert stats.chisquare(steps[1:]).pvalue > 1e-3
    assert found == training_labels(labels, args)


def test_imbalance_thins_classes_geometrically():
    args = arguments(batch_size=1)
    variants.imbalance(10, args)
    labels = np.arange(1000) % 10
    found = training_labels(labels, args)
    counts = np.bincount(list(found.values()))
    np.testing.assert_allclose(counts, 100 * 10 ** (-np.arange(10) / 9), atol=0.5)
    assert all(labels[i] == y for i, y in found.items())


def test_pairs_go_off_for_the_last_epochs():
    args = arguments(rate=1.0, method="mixavg")
    variants.pairs_off_for_last(0.2, args)
    labels = np.arange(8)
    batches = tf.data.Dataset.from_tensor_slices((np.ones((8, 2)), labels)).batch(4)
    batches = cifar.mix(batches, args, 8)
    switch = cifar.report.callbacks(Path("nowhere"), False)[0]
    for epoch in range(args.epochs):
        largest = {y.numpy().max() for _, y in batches}
        assert largest == ({0.5} if epoch < 8 else {1.0}), epoch
        switch.on_epoch_end(epoch)


@pytest.mark.parametrize(
    "kind, expected", [("late", [0, 0, 0, 0, 0.25, 0.25]), ("linear", [0, 0.05, 0.1])]
)
def test_weights_follow_their_schedule(kind, expected):
    args = arguments(
        method="mixavg", global_weight=None, prior_count=None, collect="all"
    )
    variants.weight_schedule(kind, args)
    loss, _ = cifar.loss_and_callbacks(args)
    weights = [loss.weight_at(epoch) for epoch in range(len(expected))]
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_rows_by_division_are_the_mean_prediction_of_each_class(rng):
    variants.rows_by_division(True, arguments())
    labels = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]])
    p = rng.dirichlet(np.ones(3), size=4)
    n, m = labels.T @ p, labels.T @ labels
    result = variants.equations.updated_table(np.eye(3), n, m, prior_count=0.0)
    for number in range(3):
        expected = np.average(p, axis=0, weights=labels[:, number])
        np.testing.assert_allclose(result[number], expected, atol=1e-5)


def fitted(loss, rng):
    """The loss that a model has in its second epoch, with a weight of one."""
    keras.utils.set_random_seed(0)
    x = rng.normal(size=(4, 5)).astype("float32")
    y = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]], "float32")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.0), loss)
    callback = GlobalSoftLabel(collect="all")
    history = model.fit(
        x, y, batch_size=4, epochs=2, callbacks=[callback], verbose=0, shuffle=False
    )
    logits = np.asarray(model.predict(x, verbose=0), "float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return history.history["loss"][1], y, log_p


def test_soft_labels_of_pairs_only_leave_the_others_plain(rng):
    variants.soft_labels_of_pairs_only(True, arguments())
    loss = SoftLabelCrossentropy(global_weight=1.0, from_logits=True)
    value, y, log_p = fitted(loss, rng)
    p = np.exp(log_p)
    table = reference.updated_table(np.eye(3), y.T @ p, y.T @ y, 1.0)
    targets = np.where(y.max(axis=1, keepdims=True) < 1, y @ table, y)
    assert value == pytest.approx(-(targets * log_p).sum(axis=1).mean(), rel=1e-5)


def test_the_midpoint_head_takes_part_for_pairs_and_learns(rng):
    args = arguments(network="one layer")
    inputs = keras.Input((5,))
    network = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.ReLU()(inputs)))
    cifar.NETWORKS = {"one layer": lambda shape, classes, decay: network}
    variants.midpoint_head(0.25, args)
    model = cifar.NETWORKS["one layer"]((5,), 3, 0.0)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    x = rng.normal(size=(2, 5)).astype("float32")
    y = np.array([[0.5, 0.5, 0], [1, 0, 0]], "float32")
    logits = np.asarray(model(x), "float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    head = model.get_layer("midpoint_head")
    before = [np.array(weight) for weight in head.weights]
    smooth = np.asarray(head(np.maximum(x, 0)))
    targets = y.copy()
    targets[0] = 0.75 * y[0] + 0.25 * smooth[0]
    expected = -(targets * log_p).sum(axis=1).mean()
    assert float(model.train_on_batch(x, y)) == pytest.approx(expected, rel=1e-5)
    assert np.abs(np.array(head.weights[0]) - before[0]).max() > 1e-5
    assert float(model.test_on_batch(x[1:], y[1:])) > 0


# --- Statistics and the report -------------------------------------------------------


def test_the_interval_is_that_of_a_paired_t_test(rng):
    a, b = rng.normal(size=(2, 5))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, half = report.interval(a - b)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert report.interval([1.0]) == (1.0, float("inf"))


def test_differences_are_of_the_seeds_that_both_have_and_bold_beyond_zero():
    def runs(**values):
        return {int(seed[1:]): value for seed, value in values.items()}

    def text(runs, baseline):
        return report.difference(runs, baseline, lambda value: value, 1)

    base = runs(s0=1.0, s1=2.0, s2=3.0)
    assert text(runs(s0=2.0, s1=3.1, s2=3.9, s7=99.0), base).startswith("**+1.0 [")
    assert text(runs(s0=0.0, s1=3.0, s2=3.1), base).startswith("+0.0 [-")
    assert text(runs(s2=4.0), base) == "+1.0"
    assert text(runs(s7=4.0), base) == "-"


@pytest.mark.parametrize("path", report.READMES, ids=lambda path: path.parent.name)
def test_the_tables_of_the_readme_are_what_the_results_say(path):
    text = path.read_text()
    assert text == report.render(text)


def test_the_report_notices_a_figure_that_no_result_has():
    text = report.READMES[0].read_text()
    figure = next(iter(report.read_runs("methods")[2]["tiny"]["erm"].values()))
    mean = f"{100 * figure['test']['accuracy']:.2f}"[:3]
    changed = text.replace(f"| {mean}", "| 99")
    assert changed != text
    assert report.render(changed) == text


def test_a_result_of_other_options_than_the_grid_says_is_refused(tmp_path, monkeypatch):
    run = accuracy.read_grid(GRIDS[-1])[1][0]
    path = tmp_path / GRIDS[-1].stem / f"{run.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"options": {**run.options, "epochs": 99}}))
    monkeypatch.setattr(report, "ACCURACY", tmp_path)
    with pytest.raises(SystemExit, match="other options"):
        report.read_runs(GRIDS[-1].stem)
