"""examples/image_folder.py, on folders made here."""

import re
import shutil
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
import small_data
import small_models

for package in ("sklearn", "matplotlib"):
    pytest.importorskip(package)

import image_folder  # noqa: E402
from scipy import stats  # noqa: E402
from training import answer, folder, networks, page, pictures, record  # noqa: E402

# Of protobuf and TensorBoard; and that tf.data keeps its graphs.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Even though"),
]
QUICK = ["--image-size", "16", "--epochs", "2", "--warmup-epochs", "1"]
QUICK += ["--batch-size", "24", "--network", "linear"]


@pytest.fixture(autouse=True)
def linear_network(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "linear", small_models.linear_network)


@pytest.fixture
def images(tmp_path):
    """Three classes of ten pictures; each class has its colour, with noise."""
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


def run(images, *flags):
    out = images.parent / "out"
    return image_folder.main([str(images), *QUICK, "--out", str(out), *flags])


@pytest.mark.usefixtures("eagerly")
# Keras tells CSVLogger nothing of a `fit` that was stopped: its file stays open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_comparison_stops_goes_on_ends_early_and_takes_more_runs(
    images, monkeypatch, capsys, blank_pictures
):
    """With a learning rate at which nothing is learned."""
    draw_pictures = blank_pictures
    out = images.parent / "out"

    def stop(self, epoch, logs=None):
        raise KeyboardInterrupt

    flags = ["--methods", "erm", "mixavg", "--learning-rate", "1e-6"]
    with (
        monkeypatch.context() as patch,
        pytest.raises(SystemExit, match="command continues"),
    ):
        patch.setattr(image_folder.Progress, "on_epoch_end", stop)
        run(images, *flags)
    assert not list(out.glob("*/result.json"))
    results = run(images, *flags)
    assert [len(runs) for runs in results.values()] == [1, 1]
    first = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert sorted(path.parent.name for path in first) == ["erm-0", "mixavg-0"]
    said = capsys.readouterr().out
    assert "30 images of 3 classes, 10 of each, with a median side of 20" in said
    assert "Network linear, 0.00 million parameters, from scratch: 2 epochs" in said
    assert "2 methods (plain training, MixAvg with global soft labels) x 5 runs" in said
    assert "Run 1 of 5, MixAvg with global soft labels:" in said
    assert "An epoch takes" in said and "to go" in said
    assert "# Not decided: plain training underfits" in said
    assert "Ended early. Plain training underfits" in said and "--all-runs" in said
    assert "image_folder.py" in said.split("Next. ")[1].splitlines()[2]
    draw_pictures()
    results = run(images, *flags, "--runs", "2", "--all-runs")
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert list(results) == ["erm", "mixavg"] and len(results["erm"]) == 2
    tested = [run.images for run in results["erm"]]
    assert len(set(np.concatenate(tested))) == sum(map(len, tested)) == 12
    drawn = {path.stem for path in out.glob("erm-0/*.png")}
    assert drawn == {"curves", "reliability"}  # nothing is mixed
    drawn = {path.stem for path in out.glob("mixavg-0/*.png")}
    assert drawn == {"curves", "reliability", "pairs", "soft_labels"}
    text = (out / "answer.md").read_text()
    assert text in capsys.readouterr().out
    right = [100 * run.result["test"]["accuracy"] for run in results["erm"]]
    mean, spread = np.mean(right), np.std(right, ddof=1)  # both of six images
    assert f"| plain training | {mean:.2f} ± {spread:.2f} |" in text
    assert_whole((out / "page.html").read_text(), ["MixAvg", "python ", "keras 3."])
    with pytest.raises(SystemExit, match="runs with other options: epochs"):
        run(images, "--epochs", "3", *flags)
    shutil.copy(images / "sky/1.png", images / "sky/more.png")
    with pytest.raises(SystemExit, match="other options: images.*same options and im"):
        run(images, *flags)


def assert_whole(text, parts):
    """The page is well-formed and self-contained, and has the parts."""
    tags, void = [], {"meta", "img", "br"}

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in void:
                tags.append(tag)
            for name, value in attributes:
                assert name != "href"
                assert name != "src" or value.startswith("data:image/png;base64,")

        def handle_endtag(self, tag):
            assert tags.pop() == tag

    Reader().feed(text)
    assert tags == [] and "url(" not in text and "@import" not in text
    for part in parts:
        assert part in text


def test_a_data_set_of_tfds_is_written_once_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = small_data.write_cifar10(tmp_path, 30, 20)
    argv = ["tfds:cifar10@train[:24]", "--validation", "tfds:cifar10@test"]
    argv += ["--data-dir", str(tmp_path), *QUICK]
    args = image_folder.parse_arguments(argv)
    assert not (tmp_path / "runs").exists()
    image_folder.find_folders(args)
    found, others = image_folder.survey(args)
    assert (found.images, others.images, found.side) == (24, 20, 32)
    args.image_size = 32
    (train, labels), (test, test_labels), names, _ = image_folder.load(args)
    assert names == [str(i) for i in range(10)]
    for found, found_labels, expected in (
        (train, labels, images[:24]),
        (test, test_labels, images[30:]),
    ):
        numbers = [int(names[label]) for label in found_labels]
        for image, number in zip(found, numbers, strict=True):
            (same,) = [i for i, e in enumerate(expected) if np.array_equal(e, image)]
            assert number == same % 10
    written = sorted(tmp_path.glob("runs/data/*/*/*.png"))
    assert len(written) == 44
    times = [path.stat().st_mtime_ns for path in written]
    again = image_folder.parse_arguments(argv)
    image_folder.find_folders(again)
    assert again.folder == args.folder
    assert times == [path.stat().st_mtime_ns for path in written]


def test_a_split_of_tfds_with_hidden_labels_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_data.write_cifar10(tmp_path, 4, 4, hidden={6})
    folder.of_tfds("cifar10", tmp_path)
    with pytest.raises(SystemExit, match="cifar10@test: the labels of some .* hidden"):
        folder.of_tfds("cifar10@test", tmp_path)
    assert len(list((tmp_path / "runs/data").iterdir())) == 1


def test_another_part_of_a_data_set_has_another_folder(tmp_path, monkeypatch):
    """Some have only a part of it in their data directory."""
    monkeypatch.chdir(tmp_path)
    for part, count in (("a", 10), ("b", 12)):
        small_data.write_cifar10(tmp_path / part, count, 10)
        written = folder.of_tfds("cifar10", tmp_path / part)
        assert len(list(written.glob("*/*.png"))) == count


@pytest.mark.parametrize(
    "name, expected",
    [("a/b", "a%2Fb"), (".hidden", "%2Ehidden"), ("..", "%2E."), ("a.b c", "a.b c")],
)
def test_any_name_of_a_class_names_a_folder_that_is_read(name, expected):
    assert folder.as_file_name(name) == expected


def test_a_smoke_test_of_a_data_set_of_tfds_needs_no_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = image_folder.parse_arguments(["tfds:oxford_flowers102", "--smoke"])
    image_folder.find_folders(args)
    found, _ = image_folder.survey(args)
    assert set(found.counts.values()) == {10}
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


@pytest.mark.parametrize(
    "name, said",
    [
        ("cifar11", "cifar11.*not found"),
        ("cifar10@dev", "Unknown split 'dev'. Should be one of .'train', 'test'"),
        ("ag_news_subset", "whose supervised keys are an image and a class label"),
    ],
)
def test_a_name_that_tfds_cannot_serve_is_refused(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    small_data.write_cifar10(tmp_path, 10, 10)
    with pytest.raises(SystemExit, match=said):
        folder.of_tfds(name, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_page_escapes_its_texts():
    rows = [["a<b", "c"], ["**x**", "<script>"]]
    text = page.page("<Cats & dogs>", [page.table(rows), page.command("rm '<x>'")])
    assert_whole(text, ["&lt;Cats &amp; dogs&gt;", "<strong>x</strong>", "&lt;script"])


def loaded(*flags):
    args = image_folder.parse_arguments([*map(str, flags), *QUICK])
    return args, image_folder.load(args)


def test_cross_validation_tests_each_image_once(images):
    (path := images / "sky" / "9.png").rename(images / "9.png")
    tested = []
    for part in range(5):
        args = image_folder.parse_arguments([str(images), *QUICK])
        args.seed = part
        (train, labels), (test, test_labels), names, numbers = image_folder.load(args)
        assert names == ["green frog", "red fox", "sky"]
        assert train.shape[1:] == (16, 16, 3) and train.dtype == "uint8"
        assert len(train) + len(test) == 29 and len(numbers) == len(test)
        assert (
            set(np.bincount(test_labels)) <= {1, 2, 3} and min(np.bincount(labels)) > 6
        )
        for i, channel in enumerate((1, 0, 2)):  # of the colour of the class
            assert train[labels == i].mean(axis=(0, 1, 2)).argmax() == channel
            assert test[test_labels == i].mean(axis=(0, 1, 2)).argmax() == channel
        tested += numbers.tolist()
    assert sorted(tested) == list(range(29))
    (images / "9.png").rename(path)
    labels = np.repeat([0, 1, 2], [9, 2, 7])
    again = [folder.parts(labels, 5, seed) for seed in (0, 0, 1)]
    assert np.array_equal(*again[:2]) and not np.array_equal(*again[1:])
    for parts in again:  # a class of two is never tested whole
        assert len(set(parts[labels == 1])) == 2


def test_a_validation_folder_is_tested_on_whole(images):
    _, (train, test, _, numbers) = loaded(images, "--validation", images)
    assert len(train[1]) == 30 and np.bincount(test[1]).tolist() == [10] * 3
    assert numbers.tolist() == list(range(30))


def damage(images, kind):
    if kind == "unreadable":
        (images / "sky" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    elif kind == "empty":
        (images / "nothing").mkdir()
        (images / "nothing" / "notes.txt").write_text("later")
    elif kind == "one class":
        shutil.rmtree(images / "sky"), shutil.rmtree(images / "red fox")
    elif kind == "case":
        if (images / "SKY").exists():
            pytest.skip("this file system does not tell cases apart")
        shutil.copytree(images / "sky", images / "Sky")
    elif kind == "one image":
        for path in sorted((images / "sky").iterdir())[1:]:
            path.unlink()
    elif kind == "other classes":
        shutil.copytree(images, images.parent / "test")
        (images.parent / "test" / "sky").rename(images.parent / "test" / "sea")
        return ["--validation", str(images.parent / "test")]
    elif kind == "missing":
        shutil.rmtree(images)
    elif kind == "link to nothing":
        (images / "sky/gone.png").symlink_to(images / "nothing.png")
    elif kind == "splits":
        shutil.rmtree(images)
        for part in ("train", "val"):
            (images / part / "sky").mkdir(parents=True)
    elif kind == "results inside":
        return ["--out", str(images / "runs/here")]
    return []


@pytest.mark.parametrize(
    "kind, message",
    [
        (
            "unreadable",
            r"cannot be read: 1, (.|\n)*3\.png\n(.|\n)*nothing has been",
        ),
        ("empty", "without an image .*: nothing. Add images or remove"),
        ("one class", r"for each class, at least two. Found: \['green frog'\]"),
        ("case", "differ only by case: Sky, sky. Rename one"),
        ("one image", "needs two images.* with only one: sky"),
        ("other classes", "same class folders. Only one of them has: sea, sky"),
        ("missing", "is not a folder"),
        ("link to nothing", r"cannot be read: 1, (.|\n)*gone\.png"),
        ("splits", "folder for each class. Found: train, val. Pass one.*train, and"),
        ("results inside", "which is in .*where folders are classes. Pass another"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_before_training(images, kind, message):
    flags = damage(images, kind)
    with pytest.raises(SystemExit, match=message):
        run(images, *flags)
    assert not (images.parent / "out").exists()


def test_files_that_are_no_images_are_named(images, capsys):
    (images / "sky" / "notes.txt").write_text("blue")
    image_folder.survey(image_folder.parse_arguments([str(images)]))
    assert "cannot read as images: 1 .txt" in capsys.readouterr().out


@pytest.mark.parametrize("side, used", [(20, 32), (48, 48), (500, 224)])
def test_images_are_used_at_their_own_size_within_limits(side, used):
    args = image_folder.parse_arguments(["some/folder"])
    image_folder.complete(args, folder.Survey({"a": 40, "b": 50}, side))
    assert (args.image_size, args.shift, args.runs) == (used, used // 8, 5)


def test_few_images_are_all_tested_and_many_are_not():
    def runs(count, *flags):
        args = image_folder.parse_arguments(["some/folder", *flags])
        image_folder.complete(args, folder.Survey({"a": count, "b": count}, 64))
        return args.runs

    assert runs(100) == 5 and runs(100, "--folds", "8") == 8
    assert runs(5000) == runs(100, "--validation", "other") == 3
    assert runs(5000, "--runs", "7") == 7


def test_the_plan_says_what_so_many_test_images_can_show(images):
    """Half the width of a 95 % interval if the methods differ on a quarter of them."""
    found = folder.Survey({"a": 48, "b": 432}, 64)
    args = image_folder.parse_arguments([str(images), "--network", "tiny"])
    image_folder.complete(args, found)
    text = " ".join(image_folder.plan(args, found, None))
    assert "480 images of 2 classes, 48 to 432 of each" in text
    assert "digits, text: --flip none" in text
    assert "480 images in all, and trains on about 384 images of the others" in text
    assert "from about 4.5 points" in text  # 98 / sqrt(480)
    args.validation = images
    text = " ".join(image_folder.plan(args, found, folder.Survey({"a": 96}, 64)))
    assert "from about 10.0 points" in text  # 98 / sqrt(96)
    assert "Without --validation each of the 480 images" in text
    args.train_examples = 100
    text = " ".join(image_folder.plan(args, found, folder.Survey({"a": 96}, 64)))
    assert "trains on 100 images and tests on the 96 images" in text
    assert "of the 480 images" in text


def test_a_network_that_cannot_take_the_images_is_refused(images):
    flags = ["--network", "InceptionV3", "--image-size", "32"]
    args = image_folder.parse_arguments([str(images), *flags])
    with pytest.raises(SystemExit, match="InceptionV3 does not take images of 32"):
        image_folder.parameters(args, [1, 2])


def test_the_next_command_is_the_last_one_with_other_options():
    argv = ["my photos", "--epochs=60", "--methods", "erm", "mixavg", "--out", "here"]
    args = image_folder.parse_arguments(argv)
    program, *_ = (command := image_folder.command(args, argv)).split(" 'my photos'")
    assert program.endswith("image_folder.py")
    assert (
        command == f"{program} 'my photos' --epochs=60 --methods erm mixavg --out here"
    )
    longer = image_folder.command(args, argv, {"epochs": 180})
    expected = "--methods erm mixavg --epochs 180 --out here-epochs-180"
    assert longer == f"{program} 'my photos' {expected}"
    more = image_folder.command(args, argv, {"runs": 10})
    assert more == f"{command} --runs 10"  # in the same place: what is done counts
    confirmed = image_folder.command(args, argv, {"runs": 10, "all_runs": True})
    assert confirmed == f"{command} --runs 10 --all-runs"
    argv += ["--all-runs"]
    assert image_folder.command(args, argv, {"runs": 4, "all_runs": True}) == (
        f"{command} --runs 4 --all-runs"
    )
    after = ["--epochs", "9", "--methods", "mixavg", "--", "my photos"]
    assert image_folder.command(args, after, {"runs": 6}) == (
        f"{program} 'my photos' --epochs 9 --methods mixavg --runs 6"
    )
    smoke = image_folder.parse_arguments(["my photos", "--smoke"])
    image_folder.find_folders(smoke)
    assert smoke.out.name == "folder-my photos-smoke"
    argv_of_smoke = ["my photos", "--smoke", "--epochs", "9"]
    whole = image_folder.command(smoke, argv_of_smoke, {"runs": 6})
    assert whole == f"{program} 'my photos' --epochs 9"
    argv += ["--validation", "others"]
    without = image_folder.command(args, argv, {"validation": None})
    assert "--validation" not in without and without.endswith("--out here-folds")


def test_each_method_is_compared_once():
    given = ["some/folder", "--methods", "mixup", "erm", "mixup"]
    assert image_folder.parse_arguments(given).compared == ["erm", "mixup"]


def test_help_has_every_default_and_says_what_the_networks_are(capsys):
    with pytest.raises(SystemExit):
        image_folder.parse_arguments(["--help"])
    text = capsys.readouterr().out
    options = re.findall(r"^  --.*?(?=^  --|^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(options) > 20
    for option in options:
        assert "(default:" in " ".join(option.split()), option
    text = " ".join(text.split())
    assert "fast (7 convolutions that a CPU can train, 1.2 M)" in text
    assert "mixavg (MixAvg with global soft labels)" in text
    assert "(default: fast)" in text and "(default: 60)" in text


# --- The answer ----------------------------------------------------------------------


def run_of(right, images, sure=2.0, trained=1.0, losses=(2.0, 1.0, 1.0, 1.0, 1.0)):
    """A run on two classes. `right` marks the correct images; `sure` is the logit."""
    labels = np.arange(len(right)) % 2
    taken = np.where(right, labels, 1 - labels)
    logits = sure * np.eye(2)[taken]
    history = {"accuracy": [0.1, trained], "loss": list(losses), "val_loss": [1.0, 1.0]}
    history["val_accuracy"] = [0.1, float(np.mean(right))]
    return answer.Run(images, labels, logits, history, {"seconds_per_epoch": 1.0})


def runs_of(shares, size=400, **more):
    """Runs with these accuracies, each on its own images."""
    result = []
    for number, share in enumerate(shares):
        right = np.random.default_rng(number).permutation(size) < share * size
        result.append(run_of(right, np.arange(size) + number * size, **more))
    return result


def args_of(*flags):
    args = image_folder.parse_arguments(["some/folder", *flags])
    args.runs = args.runs or 5
    return args


def test_the_wider_of_two_intervals_counts():
    rng = np.random.default_rng(0)
    ours, other = (
        [run_of(rng.random(90) < share, np.arange(90) + 90 * r) for r in range(4)]
        for share in (0.8, 0.6)
    )
    found = answer.difference(ours, other, answer.ACCURACY)
    each = [answer.right(a) - answer.right(b) for a, b in zip(ours, other, strict=True)]
    for half, values in (
        (found.over_images, np.concatenate(each)),
        (found.over_runs, [v.mean() for v in each]),
    ):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert half == pytest.approx((high - low) / 2)
    assert found.half == max(found.over_images, found.over_runs)
    assert found.mean == pytest.approx(np.concatenate(each).mean())
    assert found.says == (1 if found.mean > found.half else 0)


def test_an_image_that_is_tested_twice_counts_once():
    """Two equal runs have the images of one run, and the same interval."""
    rng = np.random.default_rng(0)
    ours, other = (run_of(rng.random(50) < 0.7, np.arange(50)) for _ in range(2))
    once = answer.difference([ours], [other], answer.NLL)
    twice = answer.difference([ours] * 2, [other] * 2, answer.NLL)
    assert twice.over_images == pytest.approx(once.over_images)
    assert once.over_runs == twice.over_runs == np.inf and not twice.says


def test_the_interval_of_the_calibration_error_is_that_of_images():
    """With one probability for all, the error is its distance from the accuracy."""
    rng = np.random.default_rng(0)
    ours, other = (
        [run_of(rng.random(200) < share, np.arange(200) + 200 * r) for r in range(3)]
        for share in (0.6, 0.4)
    )
    found = answer.difference(ours, other, answer.ECE)
    right = [np.concatenate([answer.right(r) for r in runs]) for runs in (ours, other)]
    assert found.mean == pytest.approx(right[1].mean() - right[0].mean())
    expected = 1.96 * np.std(right[1] - right[0]) / np.sqrt(600)
    assert found.over_images == pytest.approx(expected, rel=0.1)
    assert found.says == 1  # less is better


MIXAVG = "MixAvg with global soft labels"
ALL = {"trained": 1.0}
FALLING = {"trained": 0.6, "losses": (2.0, 1.5, 1.2, 1.0, 0.5)}
FLAT = {"trained": 0.6, "losses": (2.0, 1.0, 1.0, 1.0, 1.0)}
EVEN, UNEVEN = [0.5, 0.51, 0.49, 0.5, 0.5], [0.3, 0.7, 0.4, 0.6, 0.5]


@pytest.mark.parametrize(
    "plain, mixup, ours, about, title, why, changes",
    [
        (EVEN, EVEN, [0.8] * 5, ALL, "Use MixAvg with global", "memorises", "network"),
        ([0.8] * 5, EVEN, EVEN, ALL, "Stay with plain", "memorises", "network"),
        (EVEN, [0.9] * 5, [0.8] * 5, ALL, "Use MixUp", "memorises", "network"),
        (EVEN, [0.9] * 5, EVEN, ALL, "Use MixUp", "Too few", None),
        (EVEN, [0.81] * 5, [0.8] * 5, ALL, f"Use MixUp or {MIXAVG}", "mem", "network"),
        (EVEN, [0.8] * 5, [0.81] * 5, ALL, f"Use {MIXAVG} or MixUp", "mem", "network"),
        (EVEN, EVEN, UNEVEN, ALL, "Not decided: too few runs", "Too few runs", "runs"),
        (EVEN, EVEN, EVEN[::-1], ALL, "few test images", "Too few test", "network"),
        (EVEN, EVEN, EVEN, FALLING, "underfits", "after 60 its loss still", "epochs"),
        (EVEN, EVEN, EVEN, FLAT, "underfits", "the network is too small", "network"),
        (EVEN[:1], EVEN[:1], EVEN[:1], ALL, "too few runs", "needs 3", "runs"),
    ],
)
def test_the_verdict_names_what_to_use_the_cause_and_the_next_step(
    plain, mixup, ours, about, title, why, changes
):
    results = {
        "erm": runs_of(plain, **about),
        "mixup": runs_of(mixup),
        "mixavg": runs_of(ours),
    }
    for number, run in enumerate(results["mixavg"]):  # other images than plain's
        run.logits = np.roll(run.logits, 2 * number + 2, axis=0)
    found = answer.verdict(results, args_of())
    assert title in found.title and (" or " in title) == (" or " in found.title)
    assert why in found.paragraphs["Why"]
    assert changes is None or changes in found.changes
    text = found.paragraphs["Accuracy"]
    assert "plain training" in text and "MixUp, the most accurate of the other" in text
    said = found.paragraphs["Probabilities"]
    for part in ("NLL ", "NLL after one temperature ", "ECE ", "Against MixUp"):
        assert part in said


def test_fine_tuning_compares_averaged_pairs_alone_by_default_and_judges_them():
    assert args_of().compared == ["erm", "mixup", "cutmix", "mixavg"]
    assert args_of("--weights", "imagenet", "--network", "MobileNetV2").compared == [
        *("erm", "mixup", "cutmix", "mixavg_local")
    ]
    results = {"erm": runs_of(EVEN), "mixup": runs_of([0.9] * 5)}
    results["mixavg_local"] = runs_of(EVEN)
    assert answer.candidate(results) == "mixavg_local"
    assert answer.candidate({**results, "mixavg": runs_of(EVEN)}) == "mixavg"


def test_a_run_that_diverged_is_not_better():
    results = {"erm": runs_of(EVEN), "mixavg": runs_of(EVEN)}
    for run in results["mixavg"]:
        run.logits[:] = np.nan
    for measure in answer.MEASURES:
        found = answer.difference(results["mixavg"], results["erm"], measure)
        assert found.says <= 0
    assert (
        "better" not in answer.verdict(results, args_of()).paragraphs["Probabilities"]
    )


def test_the_pictures_have_no_curve_of_training_images():
    assert not image_folder.curves_of({"stopped_early": runs_of(EVEN)})
    assert image_folder.curves_of({"erm": runs_of(EVEN)})


def test_fine_tuning_does_not_take_over_the_learning_rate_of_sgd():
    changes = answer.fine_tune(args_of("--learning-rate", "0.05"))[1]
    argv = ["some/folder", "--learning-rate", "0.05"]
    command = image_folder.command(args_of(*argv[1:]), argv, changes)
    assert "--weights imagenet" in command and "0.05" not in command


def test_a_network_that_cannot_be_fine_tuned_gets_a_larger_learning_rate():
    results = {"erm": runs_of(EVEN, **FLAT), "mixavg": runs_of(EVEN)}
    args = args_of("--network", "MobileNetV2", "--weights", "imagenet")
    found = answer.verdict(results, args)
    assert "the learning rate is too small" in found.paragraphs["Why"]
    assert found.changes == {"learning_rate": "0.0003"}


def test_probabilities_decide_where_accuracy_does_not():
    """Both get the same images right; only plain training is overconfident."""
    half = np.arange(400) < 200

    def runs(sure):
        return [run_of(half, np.arange(400) + 400 * r, sure) for r in range(5)]

    def graded(run):
        """Make the wrong predictions uncertain."""
        run.logits = run.logits * np.where(half, 3.0, 0.1)[:, None]
        return run

    results = {"erm": runs(2.0), "mixavg": [graded(run) for run in runs(1.0)]}
    found = answer.verdict(results, args_of())
    assert "for its probabilities" in found.title
    results = {"erm": runs(4.0), "mixavg": runs(0.1)}  # only another temperature
    said = answer.verdict(results, args_of()).paragraphs["Probabilities"]
    assert "A temperature fitted on held-out images does as much" in said


def test_runs_end_where_more_of_them_would_change_nothing():
    def results(count, trained=1.0):
        of_ours = runs_of(EVEN[:count])
        for run in of_ours:
            run.logits = np.roll(run.logits, 2, axis=0)
        return {"erm": runs_of(EVEN[:count], trained=trained), "mixavg": of_ours}

    args = args_of("--runs", "20")
    assert "underfits" in answer.no_more_runs(results(1, trained=0.5), args)
    assert answer.no_more_runs(results(1), args) is None
    assert answer.no_more_runs(results(3), args) is None  # not all images are tested
    assert "too few" in answer.no_more_runs(results(5), args)
    decided = {"erm": runs_of([0.5] * 5), "mixavg": runs_of([0.9] * 5)}
    assert answer.no_more_runs(decided, args).endswith("the same images again.")
    args = args_of("--runs", "20", "--validation", "other")
    assert "too few" in answer.no_more_runs(results(3), args)


# --- Pictures ------------------------------------------------------------------------


def test_a_spike_of_the_loss_does_not_set_the_axis():
    history = {"epoch": list(range(20)), "accuracy": [0.5] * 20, "loss": [1.0] * 20}
    history |= {"val_accuracy": [0.5] * 20, "val_loss": [250.0, 90.0] + [1.5] * 18}
    ax = pictures.draw_curves("", record.curves_of(history)).axes[1]
    assert ax.get_ylim()[1] < 10
    assert ax.get_title() == "2 of 40 points are above, up to 250"
    history["val_loss"] = [1.5] * 20
    ax = pictures.draw_curves("", record.curves_of(history)).axes[1]
    assert ax.get_title() == ""


def test_a_picture_shows_images_that_are_mixed_and_not_what_is_left_by_chance():
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype("uint8")
    labels = np.arange(32) % 4
    names = ["a", "b", "c", "d"]
    one_hot = np.eye(4)[labels]
    mixed = images.astype(float)
    assert (
        pictures.draw_mixed(pictures.Batch(images, labels, mixed, one_hot, True), names)
        is None
    )
    mixed[20:28] = (mixed[20:28] + mixed[4:12]) / 2  # none of the first eight
    soft = one_hot.copy()
    soft[20:28] = (soft[20:28] + soft[5:13]) / 2
    for averaged, rows in ((True, 3), (False, 2)):
        batch = pictures.Batch(images, labels, mixed, soft, averaged)
        axes = pictures.draw_mixed(batch, names).axes
        seen = [ax.get_xlabel() for ax in axes[-len(axes) // rows :]]
        assert len(seen) == 8 and sum("50 %" in text for text in seen) == 6
