"""The benchmarks: grids, results and the report."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import processes
import pytest

ROOT = Path(__file__).parent.parent
GRIDS = sorted((ROOT / "benchmarks/accuracy/grids").glob("*.toml"))

for package in ("sklearn", "scipy", "matplotlib", "tensorflow_datasets"):
    pytest.importorskip(package)

import demo  # noqa: E402
import early_stopping  # noqa: E402
import efficientnet_lite0  # noqa: E402
import grid  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import plots  # noqa: E402
import provenance  # noqa: E402
import report  # noqa: E402
import tables  # noqa: E402
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
    assert len({run.name for run in runs}) == len(runs)
    compared = [run for run in runs if run.method in read["methods"]]
    if "choice" not in read:
        assert len(compared) == len(runs) == cells * len(read["seeds"])
    assert set(read["baselines"]) <= {*read["methods"], tables.BEST_RIVAL}
    assert set(read.get("plots", [])) <= set(plots.PLOTS)
    monkeypatch.chdir(tmp_path)
    for run in runs:
        if "weights" in run.options:  # a file that the reader makes first
            Path(run.options["weights"]).parent.mkdir(exist_ok=True)
            Path(run.options["weights"]).touch()
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


CHOOSING = """
title = "one"
seeds = [0]
baselines = ["plain training"]
[choice]
held-out = 300
seeds = [7, 8]
[common]
smoke = true
[settings.digits]
[methods."plain training"]
method = "erm"
[methods.MixUp]
method = "mixup"
choose = [{ alpha = 0.2 }, { share = 0.5 }]
"""


def test_options_are_chosen_on_held_out_images_before_a_method_is_compared(tmp_path):
    path, results = tmp_path / "grid.toml", tmp_path / "runs.jsonl"
    path.write_text(CHOOSING)
    _, runs = grid.read(path, results=results)
    choosing = [run for run in runs if run.options.get("held-out") == 300]
    assert [run.name for run in choosing] == [
        f"digits/MixUp, {option}-{seed}"
        for option in ("alpha 0.2", "share 0.5")
        for seed in (7, 8)
    ]
    assert [run.name for run in runs if run not in choosing] == [
        "digits/plain training-0"
    ]
    for run, accuracy_ in zip(choosing, [0.5, 0.7, 0.4, 0.9], strict=True):
        test = {"accuracy": accuracy_}
        line = {"options": run.options, "seed": run.seed, "test": test}
        _, before = grid.read(path, results=results)
        assert all(run.method != "MixUp" for run in before)
        grid.append(line, results)
    _, runs = grid.read(path, results=results)
    (chosen,) = (run for run in runs if run.method == "MixUp")
    assert chosen.options == {"smoke": True, "method": "mixup", "share": 0.5}
    assert chosen.seed == 0


def test_a_setting_with_few_images_holds_out_fewer(tmp_path):
    path, results = tmp_path / "grid.toml", tmp_path / "runs.jsonl"
    few = "[settings.digits]\nchoice = { held-out = 20 }"
    path.write_text(CHOOSING.replace("[settings.digits]", few))
    _, runs = grid.read(path, results=results)
    assert [run.options.get("held-out") for run in runs] == [20] * 4 + [None]
    assert all("choice" not in run.options for run in runs)


def test_a_choice_needs_to_be_said_how(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(CHOOSING.replace("[choice]\nheld-out = 300\nseeds = [7, 8]", ""))
    with pytest.raises(SystemExit, match="`choice` goes with `choose`"):
        grid.read(path)


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
for seed in range(15):
    line = {"options": {"of": sys.argv[3]}, "seed": seed, "more": "x" * 50_000}
    assert grid.append(line, Path(sys.argv[2]))
    both = {"options": {"of": "both"}, "seed": seed, "more": sys.argv[3] * 50_000}
    grid.append(both, Path(sys.argv[2]))
"""


def test_processes_append_whole_lines_and_none_twice(tmp_path):
    path = tmp_path / "runs.jsonl"
    started = [
        subprocess.Popen([sys.executable, "-c", APPEND, grid.FOLDER, path, name])
        for name in "ab"
    ]
    assert [each.wait(processes.LONGEST) for each in started] == [0, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = sorted((line["options"]["of"], line["seed"]) for line in lines)
    assert found == [(name, s) for name in ("a", "b", "both") for s in range(15)]


def test_the_record_of_the_demo_names_its_command_and_commit(tmp_path, monkeypatch):
    def main(args):
        assert args.runs == 2 and args.out == tmp_path
        settings = {"runs": 2, "out": str(tmp_path)}
        return {"results": [1, 2], "settings": settings, **of_the_run}

    of_the_run = {"machine": "one", "versions": {"keras": "3"}}
    monkeypatch.setattr(demo.quickstart, "main", main)
    demo.measure("--runs", "2", path=tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "command": "python benchmarks/accuracy/demo.py",
        "commit": provenance.commit(),
        "results": [1, 2],
        "settings": {"runs": 2},
        **of_the_run,
    }


def test_a_commit_is_named_and_whether_the_code_is_another(tmp_path, monkeypatch):
    """Results and READMEs, which change while a grid runs, do not count."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for name in ("COMMIT", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == ""
    for name in ("code.py", "README.md", "benchmarks/accuracy/results/accuracy.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed")
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    clean = provenance.commit()
    assert len(clean) == 12 and clean == provenance.git("rev-parse", "HEAD")[:12]
    (tmp_path / "benchmarks/accuracy/results/accuracy.jsonl").write_text(
        "one line more"
    )
    (tmp_path / "README.md").write_text("another table")
    assert provenance.commit() == clean
    (tmp_path / "code.py").write_text("changed")
    assert provenance.commit() == clean + "+"


def test_half_a_line_of_a_process_that_died_does_no_harm(tmp_path):
    path = tmp_path / "runs.jsonl"
    first, second = ({"options": {}, "seed": seed} for seed in (0, 1))
    path.write_text(json.dumps(first) + "\n" + json.dumps(second)[:9])
    assert len(grid.finished(path)) == 1
    assert grid.append(second, path) and not grid.append(first, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [first, second]


def test_runs_without_their_files_are_left_out_or_refused(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    _, runs = grid.read(grid.GRIDS / "fair.toml")
    args = argparse.Namespace(smoke=False, archive=None)
    kept = grid.possible(runs, args)
    assert 0 < len(kept) < len(runs)
    assert not any("program" in run.options for run in kept)
    said = f"{len(runs) - len(kept)} runs of Tiny-ImageNet are left out: they need"
    assert said in capsys.readouterr().out
    args.archive = "some.zip"
    assert grid.possible(runs, args) == runs
    _, runs = grid.read(grid.GRIDS / "pretrained.toml")
    with pytest.raises(SystemExit, match="(?s)no file runs/.*lite0.py runs/"):
        grid.possible(runs, args)


THREE_RUNS = """
title = "three"
seeds = [3]
baselines = ["done"]
[common]
smoke = true
method = "erm"
[settings.digits]
[methods.done]
[methods.fails]
backend = "none"
[methods."other name"]
method = "mixavg"
label-noise = 0.25
backend = "tensorflow"
"""


@pytest.fixture
def three_runs(tmp_path, monkeypatch):
    """A grid, its runs, and the file of results, which has the first of them."""
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(THREE_RUNS)
    _, runs = grid.read("grid.toml")
    line = {"options": runs[0].options, "seed": 3, "was": "before"}
    assert grid.append(line, Path("runs.jsonl"))
    return runs, Path("runs.jsonl")


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_is_recorded_with_all_that_the_report_needs(three_runs, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # which a run sets
    (*_, run), results = three_runs
    grid.train(run, {}, results)
    before, line = [json.loads(line) for line in results.read_text().splitlines()]
    assert before["was"] == "before"
    assert line["seed"] == 3 and line["options"]["method"] == "mixavg"
    assert line["commit"] == provenance.commit()
    assert line["backend"] == line["settings"]["backend"] == "tensorflow"
    assert line["settings"]["label_noise"] == 0.25
    assert len(line["history"]["loss"]) == 2
    np.testing.assert_allclose(np.sum(line["table"], axis=1), 1, atol=1e-4)
    assert str(Path.cwd()) not in json.dumps(line)
    assert not list(Path("runs").iterdir())


FLAGS = ["grid.toml", "--results", "runs.jsonl", "--jobs", "1"]


def test_a_process_runs_one_run_with_its_own_backend(three_runs):
    result = subprocess.run(
        [sys.executable, grid.__file__, *FLAGS]
        + ["--run", "digits/fails-3", "--core", "0"],
        capture_output=True,
        text=True,
        timeout=processes.LONGEST,
    )
    assert result.returncode != 0 and "import backend : none" in result.stderr


PRETENDS = """#!/bin/sh
echo "$*"
case "$*" in *fails*) exit 1; esac
"""


def test_finished_runs_are_not_repeated_and_a_failure_stops_no_other(
    three_runs, monkeypatch, capsys
):
    """With a program instead of Python that fails for one run."""
    Path("python").write_text(PRETENDS)
    Path("python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", "./python")
    monkeypatch.setattr(sys, "argv", ["grid.py", *FLAGS])
    with pytest.raises(SystemExit, match="1 runs failed: digits/fails-3"):
        grid.main()
    said = capsys.readouterr().out
    assert "1 of 3 runs are in" in said and "done" not in said
    assert "digits/fails-3 FAILED; 1 to go, about" in said
    command = " ".join([grid.__file__, *FLAGS, "--run digits/other name-3 --core 0"])
    assert f"digits/other name-3: {command}; 0 to go" in said


# --- The report ----------------------------------------------------------------------


def line(accuracy, training, scaled=True, **more):
    bins = {"confidence": [0.6], "accuracy": [accuracy], "count": [100]}
    test = {"accuracy": accuracy, "nll": 2 - accuracy, "ece": 0.1, "bins": bins}
    if scaled:
        test |= {"scaled_nll": 1.5, "scaled_ece": 0.02}
    history = {"accuracy": [0.1, training], "seconds": [2.0, 1.0]}
    history |= {"val_loss": [None, 1.0], "val_accuracy": [None, accuracy]}
    options = {"method": "erm"}
    return {"test": test, "history": history, "options": options, **more}


RUNS = {
    "plain training": {seed: line(0.5 + seed / 100, 0.99) for seed in range(3)},
    "averaged pairs": {seed: line(0.53 + seed / 100, 0.7, False) for seed in range(3)},
    "MixUp": {seed: line(0.51 + seed / 100, 0.7) for seed in range(3)},
    "CutMix": {seed: line(0.52 + seed / 100, 0.7) for seed in range(3)},
    "RegMixup": {seed: line(0.505 + seed / 100, 0.7) for seed in range(3)},
    "MixAvg with global soft labels": {
        seed: line(0.55 + seed / 50, 0.7) for seed in range(3)
    },
    "not yet": {},
}


def cells(row):
    return [cell.strip() for cell in row.strip("| ").split("|")]


def test_a_table_has_the_means_and_the_differences_of_what_is_there():
    baselines = ["plain training", "the best rival", "not yet"]
    text = tables.setting_table(RUNS, baselines)
    header, _, plain, pairs, *_, ours = map(cells, text.splitlines())
    assert plain[:8] == ["plain training", "3", "99.0 ± 0.0", "51.00 ± 1.00",
                         "1.490 ± 0.010", "1.500 ± 0.000", "10.0 ± 0.0",
                         "2.0 ± 0.0"]  # fmt: skip
    assert header[5] == "NLL after one temperature" and pairs[5] == "-"
    assert header[7] == "ECE after one temperature %" and pairs[7] == "-"
    assert header[8:] == [
        "accuracy minus plain training",
        "accuracy minus the best rival (CutMix)",
    ]
    assert plain[8] == "-" and pairs[8] == "**+3.00 [+3.00, +3.00]**"
    assert ours[9] == "**+4.00 [+1.52, +6.48]**"  # 3, 4 and 5; 4.303 / sqrt(3)


def test_the_summary_has_absolute_accuracies_and_names_the_best_rival(monkeypatch):
    less = {**RUNS, "plain training": {0: line(0.4, 0.6)}}
    less["CutMix"] = {0: line(0.99, 0.7)}  # with fewer seeds than ours it is not shown
    less["keras.layers.CutMix"] = RUNS["not yet"] | RUNS["CutMix"]
    less["MixUp"] = {**RUNS["MixUp"], 9: line(0.99, 0.7)}  # good with another seed
    shown = [("one", RUNS), ("two", less)]
    monkeypatch.setattr(tables, "settings_shown", lambda: shown)
    header, _, one, two = map(cells, tables.summary().splitlines())
    assert one[:8] == ["one", "3", "99", "51.0", "52.0", "53.0", "54.0", "57.0"]
    assert one[8] == "**+6.00 [+3.52, +8.48]**" and one[9].endswith(", CutMix (4)")
    assert one[10] == "1.50, 1.50, 1.50"
    assert two[5] == "53.0 (keras.layers)"
    assert two[9].endswith(", keras.layers.CutMix (3)")  # the others: other seeds
    assert two[2] == "60" and two[8] == "+15.00"
    steps = cells(tables.steps().splitlines()[2])
    of_table, over_rival = "**+3.00 [+0.52, +5.48]**", "**+4.00 [+1.52, +6.48]**"
    assert steps[2:] == ["**+3.00 [+3.00, +3.00]**", of_table, over_rival, "-"]
    begun = {name: {0: line(0.5, 0.9)} for name in ("plain training", tables.OURS)}
    begun[tables.OURS][1] = line(0.6, 0.7)  # plain training has not come so far
    monkeypatch.setattr(tables, "settings_shown", lambda: [("begun", begun)])
    assert cells(tables.summary().splitlines()[2])[9:] == ["-", "1.50, 1.50"]


def test_a_table_names_every_machine_and_how_many_runs_it_made():
    def run(cores, *devices):
        machine = {"processor": "x86_64", "cores": cores, "devices": devices}
        return {"backend": "jax", "versions": {"jax": "0.1"}, "machine": machine}

    gpu, cpu = run(16, "GPU 0"), run(2, "cpu 0")
    assert tables.made_on([cpu, cpu]) == "x86_64, 2 cores, jax, JAX 0.1"
    assert tables.made_on([gpu, cpu, gpu]) == (
        "2 runs on GPU, x86_64, 16 cores, jax, JAX 0.1; "
        "1 run on x86_64, 2 cores, jax, JAX 0.1"
    )


def test_a_table_says_of_each_setting_how_many_test_images_it_has():
    text = tables.table("memorise")
    assert "*CIFAR-100, 100 a class, 1.19 M parameters; 10,000 test images*" in text


@pytest.mark.parametrize("kind", plots.PLOTS)
def test_every_plot_names_its_methods_in_words(kind):
    figure = plots.PLOTS[kind]({"first": RUNS, "second": RUNS})
    texts = [text.get_text() for text in figure.findobj(Text)]
    shown = {name for name in RUNS if RUNS[name]}
    if kind != "accuracy":  # lines: five stand out, the rest is grey
        shown = shown - {"RegMixup"} | {"other methods"}
    assert shown <= set(texts)
    assert any(text.endswith("?") for text in texts)
    plt.close(figure)


def test_curves_are_those_of_the_longest_of_the_fullest_settings():
    short = line(0.5, 0.9)
    short["history"] = {name: of[-1:] for name, of in short["history"].items()}
    full = {"erm": {0: line(0.5, 0.9)}}
    found = {"one": full, "two": full, "short": {"erm": {0: short}}}
    assert plots.fullest(found) == ("two", full)


def test_the_picture_of_gains_joins_nothing_and_has_a_bar_for_each(monkeypatch):
    monkeypatch.setattr(tables, "settings_shown", lambda: [("first", RUNS)])
    figure = plots.draw_gains()
    (axes,) = figure.axes
    for line_ in axes.lines:  # the line at zero, and points
        assert len(set(line_.get_xdata())) <= 1
    points = [c.lines[0].get_xdata()[0] for c in axes.containers]
    np.testing.assert_allclose(points, [1, 2, 3, 6])
    bars = [c.lines[2][0].get_segments()[0][:, 0] for c in axes.containers]
    np.testing.assert_allclose(bars[3], [3.516, 8.484], atol=1e-3)
    plt.close(figure)


@pytest.mark.parametrize("path", report.READMES, ids=lambda path: path.parent.name)
def test_the_tables_of_the_readme_are_what_the_results_say(path):
    text = path.read_text()
    assert text == report.render(text)


def test_the_report_notices_a_figure_that_no_result_has():
    text = report.READMES[0].read_text()
    (methods,) = tables.runs_of("memorise")[2].values()
    mean = np.mean(list(tables.values(methods["plain training"], "accuracy").values()))
    changed = text.replace(f"| {mean:.2f} ±", "| 99.99 ±", 1)
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

    def without_xla(*args, compiled=two_models.compiled):
        model, callbacks = compiled(*args)
        model.jit_compile = False  # which takes longer to compile than to train
        return model, callbacks

    monkeypatch.setattr(two_models, "BATCH", 4)
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setattr(two_models, "compiled", without_xla)
    shape, actions = (two_models.FEATURES,), [fit_anew]
    rows = list(two_models.compared(two_models.hidden_layer, shape, 10, 1, actions, 2))
    (row,) = rows
    assert row["compiled_later"] == {"plain": 0, "method": 3}  # one of them to warm up
    text = training_step.fits_table([{**row, "backend": "jax"}])
    assert "| fit anew | 1 | 10 | jax | 2 |" in text and "| 0, 3 |" in text


# --- Pretrained networks --------------------------------------------------------------


def test_efficientnet_lite0_has_as_many_weights_as_the_original():
    """4,652,008, as in timm. The program itself compares the logits."""
    whole = efficientnet_lite0.efficientnet_lite0()
    count = sum(int(np.prod(w.shape)) for w in whole.trainable_weights)
    assert count == 4_652_008 and whole.output_shape == (None, 1000)
    part = efficientnet_lite0.efficientnet_lite0(
        include_top=False, input_shape=(64, 64, 3), pooling="avg"
    )
    assert part.output_shape == (None, 1280)
    names = [w.path for w in whole.weights]
    assert [w.path for w in part.weights] == names[: len(names) - 2]


# --- Early stopping ------------------------------------------------------------------


def test_the_table_of_early_stopping_has_means_and_deviations_of_each_way():
    way = "defaults, stopped"
    figures = {"accuracy": 0.9, "scaled_nll": 0.2, "ece": 0.1}
    runs = [
        {"way": way, "seed": seed, "wrong": 0.0, "epochs": 40, "nll": nll, **figures}
        for seed, nll in enumerate((0.2, 0.4))
    ]
    about = {"command": "x", "machine": "y", "versions": {}}
    table = early_stopping.table({"runs": runs, **about})
    assert table.count(way) == 1  # of the one setting that has runs
    deviation = f"{0.1 * 2**0.5:.3f}"
    assert f"| {way} | 40 ± 0 | 90.0 ± 0.0 | 0.300 ± {deviation} |" in table


# In two epochs no plateau lowers the learning rate.
@pytest.mark.filterwarnings("ignore:Training ended at its highest learning rate")
def test_a_way_of_early_stopping_trains_and_is_scored():
    run = early_stopping.run(early_stopping.FOLLOWS, seed=0, wrong=0.2, epochs=2)
    assert run["epochs"] == 2
    assert 0 < run["scaled_nll"] <= run["nll"] + 0.1 and 0 <= run["accuracy"] <= 1
