"""The instrument of the study: grids, their results, and the report."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
GRIDS = sorted((ROOT / "benchmarks/grids").glob("*.toml"))

for package in ("sklearn", "scipy", "matplotlib", "tensorflow_datasets"):
    pytest.importorskip(package)

import accuracy  # noqa: E402
import grid  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import record  # noqa: E402
import report  # noqa: E402
import training_step  # noqa: E402
import two_models  # noqa: E402
from matplotlib.text import Text  # noqa: E402

# Of TFDS and protobuf.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

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
def test_every_run_of_every_grid_is_one_that_the_program_takes(
    path, tmp_path, monkeypatch
):
    read, runs = grid.read(path)
    backend = runs[0].options.get("backend", "tensorflow")
    monkeypatch.setenv("KERAS_BACKEND", backend)  # which reading a run's options sets
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    cells = len(read["settings"]) * len(read["methods"])
    assert len({run.name for run in runs}) == len(runs) == cells * len(read["seeds"])
    assert set(read["baselines"]) <= set(read["methods"])
    assert set(read.get("plots", [])) <= set(accuracy.PLOTS)
    for run in runs:
        options = {**run.options, "out": tmp_path / "new", "seed": run.seed}
        _, args = grid.arguments(options)  # exits if it does not know one
        assert args.method in args.methods and args.seed == run.seed


def test_a_grid_is_read_seed_by_seed_and_later_options_win(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(SMALL_GRID)
    _, runs = grid.read(path)
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
    [("title = 't'", "`baselines` is missing"), ("[setings.a]", "setings")],
)
def test_a_wrong_grid_is_refused_by_name(tmp_path, text, expected):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=expected):
        grid.read(path)


# --- Results -------------------------------------------------------------------------


def test_a_run_is_the_same_with_the_same_options_and_seed():
    a = grid.key({"epochs": 1, "fade-out": 0, "smoke": True}, 2)
    assert a == grid.key({"smoke": True, "fade-out": 0.0, "epochs": 1}, 2)
    assert a != grid.key({"epochs": 1, "fade-out": 0, "smoke": True}, 3)
    assert a != grid.key({"epochs": 1, "fade-out": 0, "smoke": False}, 2)


APPEND = """
import sys
sys.path.insert(0, sys.argv[1])
import grid
from pathlib import Path
for seed in range(40):
    line = {"options": {"of": sys.argv[3]}, "seed": seed, "more": "x" * 50_000}
    assert grid.append(line, Path(sys.argv[2]))
    both = {"options": {"of": "both"}, "seed": seed, "more": sys.argv[3] * 50_000}
    grid.append(both, Path(sys.argv[2]))
"""


def test_processes_append_whole_lines_and_none_twice(tmp_path):
    path = tmp_path / "runs.jsonl"
    processes = [
        subprocess.Popen([sys.executable, "-c", APPEND, record.BENCHMARKS, path, name])
        for name in "ab"
    ]
    assert [process.wait() for process in processes] == [0, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = sorted((line["options"]["of"], line["seed"]) for line in lines)
    assert found == [(name, s) for name in ("a", "b", "both") for s in range(40)]


def test_a_commit_is_named_and_whether_the_code_is_another(tmp_path, monkeypatch):
    """The results and READMEs, which grow while a grid runs, do not count."""
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.commit() == ""
    for name in ("code.py", "README.md", "benchmarks/results/accuracy.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed")
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    clean = record.commit()
    assert len(clean) == 12 and clean == record.git("rev-parse", "HEAD")[:12]
    (tmp_path / "benchmarks/results/accuracy.jsonl").write_text("one line more")
    (tmp_path / "README.md").write_text("another table")
    assert record.commit() == clean
    (tmp_path / "code.py").write_text("changed")
    assert record.commit() == clean + "+"


def test_half_a_line_of_a_process_that_died_does_no_harm(tmp_path):
    path = tmp_path / "runs.jsonl"
    first, second = ({"options": {}, "seed": seed} for seed in (0, 1))
    path.write_text(json.dumps(first) + "\n" + json.dumps(second)[:9])
    assert len(grid.finished(path)) == 1
    assert grid.append(second, path) and not grid.append(first, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [first, second]


def test_runs_are_recorded_never_repeated_and_a_failure_stops_no_other(tmp_path):
    backend = "torch" if importlib.util.find_spec("torch") else "tensorflow"
    small = SMALL_GRID.replace("[3, 5]", "[3]").split("[settings.noise]")[0]
    small += f"""
[methods.done]
[methods."other name"]
method = "mixavg"
label-noise = 0.25
backend = "{backend}"
[methods.fails]
backend = "none"
"""
    small = small.replace('baselines = ["erm"]', 'baselines = ["done"]')
    (tmp_path / "grid.toml").write_text(small)
    done = {"options": {"smoke": True, "method": "erm"}, "seed": 3, "was": "before"}
    path = tmp_path / "runs.jsonl"
    assert grid.append(done, path)
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks/grid.py", "grid.toml"]
        + ["--results", "runs.jsonl", "--jobs", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "1 of 3 runs are there" in result.stdout
    assert "digits/other name-3: " in result.stdout, result.stdout
    assert "1 to go, about" in result.stdout
    assert "1 runs failed: digits/fails-3" in result.stderr
    assert "Unable to import backend" in result.stdout
    before, line = [json.loads(line) for line in path.read_text().splitlines()]
    assert before == done
    assert line["seed"] == 3 and line["options"]["method"] == "mixavg"
    assert line["commit"] == record.commit()
    assert line["backend"] == line["settings"]["backend"] == backend
    assert line["settings"]["label_noise"] == 0.25
    assert len(line["history"]["loss"]) == 2
    np.testing.assert_allclose(np.sum(line["table"], axis=1), 1, atol=1e-4)
    assert str(tmp_path) not in json.dumps(line)
    assert not list((tmp_path / "runs").iterdir())


# --- The report ----------------------------------------------------------------------


def line(accuracy, training, scaled=True, **more):
    bins = {"confidence": [0.6], "accuracy": [accuracy], "count": [100]}
    test = {"accuracy": accuracy, "nll": 2 - accuracy, "ece": 0.1, "bins": bins}
    if scaled:
        test |= {"scaled_nll": 1.5, "scaled_ece": 0.02}
    history = {"accuracy": [0.1, training], "seconds": [2.0, 1.0]}
    history |= {"val_loss": [None, 1.0], "val_accuracy": [None, accuracy]}
    return {"test": test, "history": history, **more}


RUNS = {
    "erm": {seed: line(0.5 + seed / 100, 0.99) for seed in range(3)},
    "mixavg, .5": {seed: line(0.53 + seed / 100, 0.7, False) for seed in range(3)},
    "not yet": {},
}


def test_a_table_has_the_means_and_the_differences_of_what_is_there():
    text = accuracy.setting_table(RUNS, ["erm", "not yet"])
    header, _, plain, ours = (row.split(" | ") for row in text.splitlines())
    assert plain[:8] == ["| erm", "3", "51.00 ± 1.00", "99.0 ± 0.0", "1.490 ± 0.010",
                         "1.500 ± 0.000", "10.00 ± 0.00", "2.00 ± 0.00"]  # fmt: skip
    assert header[5] == "NLL scaled" and ours[5] == ours[7] == "-"
    assert ours[8] == "1.00" and ours[9] == "**+3.00 [+3.00, +3.00]**"
    assert plain[9] == "-" and len(header) == 11


def test_a_table_names_every_machine_and_how_many_runs_it_made():
    def run(cores, *devices):
        machine = {"processor": "x86_64", "cores": cores, "devices": devices}
        return {"backend": "jax", "versions": {"jax": "0.1"}, "machine": machine}

    gpu, cpu = run(16, "GPU 0"), run(2, "cpu 0")
    assert accuracy.made_on([cpu, cpu]) == "x86_64, 2 cores, jax, JAX 0.1"
    assert accuracy.made_on([gpu, cpu, gpu]) == (
        "2 runs on GPU, x86_64, 16 cores, jax, JAX 0.1; "
        "1 run on x86_64, 2 cores, jax, JAX 0.1"
    )


def test_a_table_says_of_each_setting_how_many_test_images_it_has():
    text = accuracy.table("underfits")
    assert "*CIFAR-10, 200 a class, 0.31 M parameters; 2,000 test images*" in text
    assert "*CIFAR-100, 100 a class, 20 epochs; 10,000 test images*" in text


@pytest.mark.parametrize("kind", accuracy.PLOTS)
def test_every_plot_shows_every_method_in_words(kind):
    figure = accuracy.PLOTS[kind]({"first": RUNS, "second": RUNS})
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert "pairs and table, .5" in texts
    assert ("plain training" in texts) == (kind != "regime")
    assert any(text.endswith("?") for text in texts)
    plt.close(figure)


@pytest.mark.parametrize("path", report.READMES, ids=lambda path: path.parent.name)
def test_the_tables_of_the_readme_are_what_the_results_say(path):
    text = path.read_text()
    assert text == report.render(text)


def test_the_report_notices_a_figure_that_no_result_has():
    text = report.READMES[0].read_text()
    (methods,) = accuracy.runs_of("memorise")[2].values()
    mean = np.mean(list(accuracy.values(methods["erm"], "accuracy").values()))
    changed = text.replace(f"| {mean:.2f}"[:4], "| 99")
    assert changed != text
    assert report.render(changed) == text


# --- Training steps ------------------------------------------------------------------


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="it compiles nothing")
@pytest.mark.filterwarnings("ignore:.*shuffle=True")
def test_the_row_of_a_second_fit_counts_what_is_compiled_in_later_ones(monkeypatch):
    def fit_anew(model, callbacks, data, steps):
        if callbacks:  # with the method
            model.make_train_function(force=True)
        two_models.fit(model, callbacks, data, steps)

    monkeypatch.setattr(two_models, "BATCH", 4)
    shape, actions = (two_models.FEATURES,), [two_models.fit, fit_anew]
    rows = list(two_models.compared(two_models.hidden_layer, shape, 10, 1, actions, 2))
    assert rows[0]["compiled_later"] == {"plain": 0, "method": 0}
    assert rows[1]["compiled_later"]["plain"] == 0
    assert rows[1]["compiled_later"]["method"] == 3  # one of them to warm up
    text = training_step.fits_table([{**row, "backend": "jax"} for row in rows])
    assert "| fit anew | 1 | 10 | jax | 2 |" in text and "| 0, 3 |" in text
