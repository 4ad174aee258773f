"""The training programs and the guide, as a user starts them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PICTURES = ["curves", "pairs", "reliability"]

for package in ("sklearn", "matplotlib", "tensorflow_datasets", "keras_cv"):
    pytest.importorskip(package)

sys.path.insert(0, str(EXAMPLES))
import cifar  # noqa: E402
import tiny_imagenet  # noqa: E402
from small_data import write_cifar10  # noqa: E402

# Of TFDS, protobuf and TensorBoard.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def start(program, *arguments, folder, **kwargs):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / program), *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def assert_complete(out, table):
    result = json.loads((out / "result.json").read_text())
    assert set(result["test"]) == {
        "accuracy",
        "top5_accuracy",
        "nll",
        "ece",
        "scaled_nll",
        "scaled_ece",
        "temperatures",
        "mean_winning_probability",
        "bins",
    }
    for name in [*PICTURES, *(["soft_labels"] if table else [])]:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for name in ("soft_labels.png", "soft_labels.npy"):
        assert (out / name).exists() == table
    assert list((out / "tensorboard").rglob("events.out.tfevents.*"))
    assert not (out / "backup").exists()
    model = keras.saving.load_model(out / "model.keras")
    assert model.output_shape[1] >= 10
    epochs = result["settings"]["epochs"]
    with open(out / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    return result


def test_the_smoke_run_leaves_everything(tmp_path):
    process = start("cifar.py", "--smoke", folder=tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "ran out of data" not in errors
    (out,) = (tmp_path / "runs").iterdir()
    result = assert_complete(out, table=True)
    accuracy = 100 * result["test"]["accuracy"]
    assert f"accuracy {accuracy:.2f} %" in output
    assert "Epoch 2/2" in output


def test_the_smoke_run_of_tiny_imagenet_leaves_everything(tmp_path):
    tiny_imagenet.main(["--smoke", "--quiet", "--out", str(tmp_path / "out")])
    assert_complete(tmp_path / "out", table=True)


def refused_for(arguments, reason, capsys):
    with pytest.raises(SystemExit):
        cifar.parse_arguments(list(map(str, arguments)))
    assert reason in capsys.readouterr().err


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path, capsys):
    """Ctrl-C after an epoch or two; the message's own command resumes the run."""
    write_cifar10(tmp_path / "tfds", train=200, test=30)
    out = tmp_path / "out"
    arguments = ["--data-dir", tmp_path / "tfds", "--network", "tiny", "--epochs", "8"]
    arguments += ["--batch-size", "20", "--deterministic"]
    process = start("cifar.py", *arguments, "--out", out, folder=tmp_path)
    history = out / "history.csv"
    while process.poll() is None:
        if history.exists() and history.read_text().count("\n") >= 3:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    output, errors = process.communicate()
    assert process.returncode != 0 and not (out / "result.json").exists()
    assert "Go on after" in errors, errors[-3000:]
    command = re.search(r"Go on after .* with\n    python (.*)", errors)[1]
    assert command.endswith("--resume")
    refused_for([*arguments, "--out", out], "has an unfinished run", capsys)
    resumed = subprocess.run(
        f"{sys.executable} {command}",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "Epoch 1/8" not in resumed.stdout and "Epoch 8/8" in resumed.stdout
    assert_complete(out, table=True)
    refused_for([*arguments, "--out", out], "has a finished run", capsys)
    whole = tmp_path / "whole"
    process = start("cifar.py", *arguments, "--out", whole, folder=tmp_path)
    assert process.communicate() and process.returncode == 0
    assert_the_same(out, whole)


def assert_the_same(out, other):
    """Two runs, to the last bit: every epoch's figures, and the weights."""
    logs = []
    for folder in (out, other):
        with open(folder / "history.csv") as file:
            rows = list(csv.DictReader(file))
        logs.append([{**row, "seconds": ""} for row in rows])
    assert logs[0] == logs[1]
    weights = [
        keras.saving.load_model(folder / "model.keras").get_weights()
        for folder in (out, other)
    ]
    for one, same in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "cutout"], "invalid choice: 'cutout'"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--network", "vgg"], "--network vgg is none of"),
        (["--batch-size", "9", "--devices", "2"], "must be a multiple of --devices"),
        (["--learning-rate", "fast"], "--learning-rate: invalid float value"),
        (["--mixed-precision", "int8"], "invalid choice: 'int8'"),
    ],
)
@pytest.mark.parametrize("program", [cifar, tiny_imagenet], ids=["cifar", "tiny"])
def test_wrong_flags_are_refused(program, arguments, message, capsys):
    with pytest.raises(SystemExit):
        program.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_more_devices_than_there_are_are_refused(tmp_path):
    arguments = ["--smoke", "--quiet", "--devices", "8", "--out", str(tmp_path / "a")]
    with pytest.raises(SystemExit, match="--devices 8: found only"):
        cifar.main(arguments)


TWO_DEVICES = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
sys.path.insert(0, sys.argv.pop(1))
import cifar
cifar.main(["--smoke", "--quiet", "--devices", "2", "--mixed-precision", *sys.argv[1:]])
"""


def test_two_devices_and_mixed_precision(tmp_path):
    out = str(tmp_path / "a")
    subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(EXAMPLES), "--out", out], check=True
    )
    assert_complete(tmp_path / "a", table=True)


# --- The guide -----------------------------------------------------------------------


@pytest.mark.filterwarnings("error::UserWarning")
def test_the_guide_runs_and_is_a_notebook(tmp_path, monkeypatch):
    jupytext = pytest.importorskip("jupytext")
    monkeypatch.chdir(tmp_path)
    notebook = jupytext.read(EXAMPLES / "guide.py")
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and kinds.count("code") >= 5
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    exec(compile(code, "guide.py", "exec"), {"__name__": "__main__"})
