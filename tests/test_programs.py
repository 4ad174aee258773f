"""The training programs and the guide, as a user starts them."""

import csv
import json
import re
import shlex
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import processes
import pytest
import small_models
import tensorflow as tf

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PICTURES = ["curves", "pairs", "reliability"]

for package in ("sklearn", "matplotlib", "tensorflow_datasets"):
    pytest.importorskip(package)

import cifar  # noqa: E402
import tiny_imagenet  # noqa: E402
from matplotlib import figure  # noqa: E402
from small_data import write_cifar10  # noqa: E402
from tolerances import assert_close, close  # noqa: E402
from training import networks  # noqa: E402

# Of TFDS, protobuf and TensorBoard.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


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


def test_the_smoke_data_of_tiny_imagenet_are_its_archives(tmp_path):
    """The rest is the run of cifar.py."""
    arguments = ["--smoke", "--out", str(tmp_path / "out")]
    args = tiny_imagenet.parse_arguments(arguments)
    training, test, names = tiny_imagenet.load(args)
    for (images, labels), of_each in ((training, 20), (test, 5)):
        assert images.shape == (10 * of_each, 64, 64, 3) and images.dtype == "uint8"
        assert np.bincount(labels).tolist() == [of_each] * 10
    assert len(names) == 10 and names[0] == "colours 0"


def test_another_archive_is_never_taken_for_one_that_has_been_prepared(
    tmp_path, monkeypatch
):
    folders = []
    monkeypatch.setattr(
        tiny_imagenet.data, "from_tfds", lambda *a, **k: folders.append(a[2])
    )
    for content in ("a", "bc"):
        (tmp_path / "subset.zip").write_text(content)
        flags = ["--archive", str(tmp_path / "subset.zip"), "--out", "nowhere"]
        for more in ([], ["--data-dir", str(tmp_path / "tfds")]):
            tiny_imagenet.load(tiny_imagenet.parse_arguments([*flags, *more]))
    assert len(set(folders)) == 4
    assert [folder.parent for folder in folders[:2]] == [
        Path("runs/data"),
        tmp_path / "tfds",
    ]
    args = tiny_imagenet.parse_arguments(["--archive", "none.zip", "--out", "nowhere"])
    with pytest.raises(SystemExit, match="--archive none.zip: there is no such file"):
        tiny_imagenet.load(args)


def refused_for(arguments, reason, capsys):
    with pytest.raises(SystemExit):
        cifar.parse_arguments(list(map(str, arguments)))
    assert reason in capsys.readouterr().err


def three_runs(*arguments):
    """A whole run, a run to be stopped, and the command of its message."""
    networks.NETWORKS["linear"] = small_models.linear_network
    tf.config.run_functions_eagerly(True)  # three graphs cost more than the few steps
    figure.Figure.savefig = small_models.save_one_pixel
    cifar.main([*arguments, "--out", "whole"])
    keras.utils.clear_session()
    sys.argv = [cifar.__file__, *arguments]
    whole = keras.callbacks.CSVLogger

    class Interrupts(whole):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does

    keras.callbacks.CSVLogger = Interrupts
    try:
        cifar.main()
    except SystemExit as stop:
        keras.callbacks.CSVLogger = whole
        print("stopped", flush=True)
        assert not list(Path("runs").rglob("result.json"))
        command = re.search("Continue after .* with\n    python (.*)", str(stop))[1]
        sys.argv = shlex.split(command)
        print(sys.argv, flush=True)
        keras.utils.clear_session()
        cifar.main()


@pytest.mark.new_process
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(
    tmp_path, capsys, monkeypatch
):
    """Ctrl-C after an epoch; the message's own command resumes the run."""
    monkeypatch.setitem(networks.NETWORKS, "linear", small_models.linear_network)
    write_cifar10(tmp_path / "tfds", train=20, test=10)
    arguments = ["--data-dir", str(tmp_path / "tfds"), "--network", "linear"]
    arguments += ["--epochs", "3", "--batch-size", "10", "--deterministic"]
    out = tmp_path / "runs/cifar10-mixavg-0"
    output = processes.run(three_runs, *arguments, folder=tmp_path)
    assert "ran out of data" not in (tmp_path / "stderr.txt").read_text()
    _, resumed = output.split("stopped\n")
    assert resumed.splitlines()[0].endswith("'--resume']")
    assert "Epoch 1/3" not in resumed and "Epoch 3/3" in resumed
    accuracy = 100 * assert_complete(out, table=True)["test"]["accuracy"]
    assert f"accuracy {accuracy:.2f} %" in resumed
    refused_for([*arguments, "--out", out], "has a finished run", capsys)
    assert_the_same(out, tmp_path / "whole")


def test_a_run_is_resumed_with_its_own_options_only(tmp_path):
    """`--resume --method mixavg` after a run of erm, say."""
    begun = ["--smoke", "--quiet", "--resume", "--out", str(tmp_path)]
    for method in ("erm", "mixavg", "erm"):  # any, while nothing has been trained
        args = cifar.parse_arguments([*begun, "--method", method])
        with pytest.raises(SystemExit, match="no data"):
            cifar.fit.main(args, lambda args: sys.exit("no data"))
    before = (tmp_path / "settings.json").read_text()
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup/latest.weights.h5").touch()
    args = cifar.parse_arguments([*begun, "--method", "mixavg", "--seed", "3"])
    with pytest.raises(SystemExit, match="with other options: method, seed. Choose"):
        cifar.fit.main(args, lambda args: sys.exit("no data"))
    assert (tmp_path / "settings.json").read_text() == before


def test_short_training_warms_up_for_a_quarter_of_it():
    epochs = {"2": 0, "12": 3, "60": 5}
    for given, expected in epochs.items():
        args = cifar.parse_arguments(["--epochs", given, "--out", "nowhere"])
        assert args.warmup_epochs == expected


def test_an_unfinished_run_is_not_written_over(tmp_path, capsys):
    (tmp_path / "backup").mkdir()
    refused_for(["--out", tmp_path], "has an unfinished run", capsys)


def test_a_smoke_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cifar.parse_arguments(["--smoke"]).out == Path("runs/cifar10-smoke")


def assert_the_same(out, other):
    """Compare the figures of every epoch, and the weights."""
    logs = []
    for folder in (out, other):
        with open(folder / "history.csv") as file:
            logs.append(list(csv.DictReader(file)))
    for one, same in zip(*logs, strict=True):
        assert one.keys() == same.keys()
        for name in one.keys() - {"seconds"}:
            assert float(one[name]) == close(float(same[name]), trained=True), name
    weights = [
        keras.saving.load_model(folder / "model.keras").get_weights()
        for folder in (out, other)
    ]
    for one, same in zip(*weights, strict=True):
        assert_close(one, same, trained=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "cutout"], "invalid choice: 'cutout'"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--network", "vgg"], "--network vgg is none of"),
        (["--batch-size", "9", "--devices", "2"], "must be a multiple of --devices"),
        (["--learning-rate", "fast"], "--learning-rate: invalid float value"),
        (["--method", "erm", "--fade-out", "0.3"], "has no global soft labels"),
        (["--mixed-precision", "int8"], "invalid choice: 'int8'"),
        (["--epochs", "3", "--warmup-epochs", "3"], "less than --epochs, 3, not 3"),
        (["--rate", "2"], "--method mixavg: "),
        (["--fade-out", "3"], "--method mixavg: "),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--backend", "torch"], "Set KERAS_BACKEND=torch instead"),
        (["--back", "jax"], "unrecognized arguments: --back"),
        (
            ["--method", "stopped_early", "--global-weight", "0.5"],
            "--global-weight does not apply to --method stopped_early",
        ),
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


def run_on_two_devices(*arguments):
    tf.config.run_functions_eagerly(True)  # a graph of each device costs more
    figure.Figure.savefig = small_models.save_one_pixel
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    cifar.main(arguments)


@pytest.mark.new_process
def test_cifar_trains_on_two_devices_in_mixed_precision(tmp_path):
    """In a new process, since TensorFlow's collectives belong to the whole process."""
    write_cifar10(tmp_path / "tfds", train=20, test=20)
    flags = ["--data-dir", str(tmp_path / "tfds"), "--network", "tiny", "--quiet"]
    flags += ["--epochs", "1", "--batch-size", "20", "--devices", "2"]
    flags += ["--mixed-precision"]
    processes.run(run_on_two_devices, *flags, folder=tmp_path)
    (out,) = (tmp_path / "runs").iterdir()
    assert assert_complete(out, table=True)["settings"]["devices"] == 2


# --- The guide -----------------------------------------------------------------------


@pytest.mark.usefixtures("few_steps")
@pytest.mark.filterwarnings("ignore:Limiting|Even though")
@pytest.mark.filterwarnings("error::UserWarning")
def test_the_guide_runs_and_is_a_notebook(tmp_path, monkeypatch):
    jupytext = pytest.importorskip("jupytext")
    monkeypatch.chdir(tmp_path)
    notebook = jupytext.read(EXAMPLES / "guide.py")
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and kinds.count("code") >= 5
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    exec(compile(code, "guide.py", "exec"), {"__name__": "__main__"})
