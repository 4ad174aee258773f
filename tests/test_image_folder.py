"""Does it help on my images? The program for a folder of them, on folders made here."""

import shutil

import keras
import numpy as np
import pytest

for package in ("sklearn", "matplotlib"):
    pytest.importorskip(package)

import image_folder  # noqa: E402
from training import compare  # noqa: E402

# Of protobuf and TensorBoard; and that tf.data keeps its graphs.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Even though"),
]
QUICK = ["--image-size", "16", "--epochs", "2", "--warmup-epochs", "1"]
QUICK += ["--batch-size", "8", "--network", "tiny"]


@pytest.fixture
def folder(tmp_path):
    """Three classes of ten pictures, each of a colour of its own, with noise."""
    rng = np.random.default_rng(0)
    colours = {
        "red fox": [200, 40, 30],
        "green frog": [30, 180, 60],
        "sky": [20, 60, 220],
    }
    for name, colour in colours.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            image = np.clip(rng.normal(colour, 30, (20, 24, 3)), 0, 255)
            path = tmp_path / "pictures" / name / f"{i}.png"
            keras.utils.save_img(path, image, scale=False)
    return tmp_path / "pictures"


def run(folder, *flags):
    out = folder.parent / "out"
    return image_folder.main([str(folder), *QUICK, "--out", str(out), *flags])


@pytest.mark.usefixtures("eagerly")
# Keras tells CSVLogger nothing of a `fit` that was stopped: its file stays open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_comparison_stops_goes_on_and_takes_more_seeds(folder, monkeypatch, capsys):
    out = folder.parent / "out"

    def stop(self, epoch, logs=None):
        raise KeyboardInterrupt

    methods = ["--methods", "erm", "mixavg"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="goes on"):
        patch.setattr(image_folder.Progress, "on_epoch_end", stop)
        run(folder, "--seeds", "1", *methods)
    assert not list(out.glob("*/result.json"))
    run(folder, "--seeds", "1", *methods)
    first = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert sorted(path.parent.name for path in first) == ["erm-0", "mixavg-0"]
    assert "1 seed does not tell" in capsys.readouterr().out
    results = run(folder, "--seeds", "2", "--methods", "erm")
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert list(results) == ["erm"] and sorted(results["erm"]) == [0, 1]
    for name in ("curves", "confused", "mixavg-0/pairs", "mixavg-0/reliability"):
        assert (out / f"{name}.png").stat().st_size > 5000
    assert (out / "mixavg-0" / "soft_labels.png").exists()
    text = (out / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    accuracy = (
        results["erm"][0]["test"]["accuracy"],
        results["erm"][1]["test"]["accuracy"],
    )
    assert f"{100 * np.mean(accuracy):.2f} ±" in text
    with pytest.raises(SystemExit, match="runs with other options: epochs"):
        run(folder, "--epochs", "3", *methods)


def test_a_validation_folder_is_tested_on_whole_and_a_split_is_of_every_class(folder):
    args = image_folder.parse_arguments([str(folder), *QUICK])
    (images, labels), (test, test_labels), names = image_folder.load(args)
    assert names == ["green frog", "red fox", "sky"]
    assert images.shape == (24, 16, 16, 3) and images.dtype == "uint8"
    assert np.bincount(labels).tolist() == [8, 8, 8]
    assert np.bincount(test_labels).tolist() == [2, 2, 2]
    for i, channel in enumerate((1, 0, 2)):  # of the colour of the class
        assert (images[labels == i].mean(axis=(0, 1, 2)).argmax()) == channel
        assert (test[test_labels == i].mean(axis=(0, 1, 2)).argmax()) == channel
    args.seed = 1
    (_, _), (other, _), _ = image_folder.load(args)
    assert not np.array_equal(test, other)
    args.validation = folder
    (images, _), (test, test_labels), _ = image_folder.load(args)
    assert (
        len(images) == len(test) == 30 and np.bincount(test_labels).tolist() == [10] * 3
    )


def damage(folder, kind):
    if kind == "unreadable":
        (folder / "sky" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    elif kind == "empty":
        (folder / "nothing").mkdir()
        (folder / "nothing" / "notes.txt").write_text("later")
    elif kind == "one class":
        shutil.rmtree(folder / "sky"), shutil.rmtree(folder / "red fox")
    elif kind == "case":
        shutil.copytree(folder / "sky", folder / "Sky")
    elif kind == "one image":
        for path in sorted((folder / "sky").iterdir())[1:]:
            path.unlink()
    elif kind == "other classes":
        shutil.copytree(folder, folder.parent / "test")
        (folder.parent / "test" / "sky").rename(folder.parent / "test" / "sea")
        return ["--validation", str(folder.parent / "test")]
    elif kind == "missing":
        shutil.rmtree(folder)
    return []


@pytest.mark.parametrize(
    "kind, message",
    [
        (
            "unreadable",
            r"cannot be read: 1, (.|\n)*3\.png\n(.|\n)*nothing has been",
        ),
        ("empty", "without an image .*: nothing. Add images or remove"),
        ("one class", r"at least two classes. Found: \['green frog'\]"),
        ("case", "differ only by case: Sky, sky. Rename one"),
        ("one image", "needs two images.* Only one is in: sky"),
        ("other classes", "same class folders. In one of them only: sea, sky"),
        ("missing", "is no folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_before_training(folder, kind, message):
    flags = damage(folder, kind)
    with pytest.raises(SystemExit, match=message):
        run(folder, *flags)
    assert not (folder.parent / "out").exists()


def test_files_that_are_no_images_are_named(folder, capsys):
    (folder / "sky" / "notes.txt").write_text("blue")
    image_folder.check(image_folder.parse_arguments([str(folder)]))
    assert "no images that Keras reads: 1 .txt" in capsys.readouterr().out


def results(trained, plain, ours):
    def runs(values):
        return {
            seed: {
                "test": {"accuracy": value, "nll": 1.0, "ece": 0.1},
                "history": {"accuracy": [0.1, trained]},
                "seconds_per_epoch": 2.0,
            }
            for seed, value in enumerate(values)
        }

    return {"erm": runs(plain), "mixavg": runs(ours)}


@pytest.mark.parametrize(
    "trained, ours, expected",
    [
        (0.99, [0.53, 0.52, 0.54], ["99.0 %", "50.0 %", "memorises", "Use mixavg"]),
        (0.91, [0.53, 0.52, 0.54], ["91.0 %", "memorises", "Use mixavg"]),
        (0.89, [0.53, 0.52, 0.54], ["89.0 %", "underfits", "Use mixavg"]),
        (0.99, [0.45, 0.46, 0.44], ["memorises", "Stay with plain training"]),
        (0.99, [0.50, 0.53, 0.49], ["3 seeds do not tell", r"\+0.67 points ± 5.17"]),
    ],
)
def test_the_advice_follows_the_interval_and_the_regime(trained, ours, expected):
    said = compare.advice(results(trained, [0.5, 0.5, 0.5], ours))
    for part in expected:
        assert part.replace("\\", "") in said
    row = compare.table(results(trained, [0.5, 0.5, 0.5], ours)).splitlines()[-1]
    assert f"{100 * (np.mean(ours) - 0.5):+.2f} [" in row
