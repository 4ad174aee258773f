import importlib
import sys

import numpy as np
import pytest
import reference

pytest.importorskip("matplotlib")

from keras_mixavg import plotting  # noqa: E402

pytestmark = pytest.mark.once

PARTNERS = [1, 0, 2]


def pairs(rng, channels):
    shape = (3, 4, 4, channels) if channels else (3, 4, 4)
    images = rng.uniform(size=shape)
    labels = np.eye(3)
    mixed = [reference.averaged(part, PARTNERS) for part in (images, labels)]
    return images, labels, *mixed


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_pairs_show_each_image_its_partner_and_their_average(rng, channels):
    images, labels, mixed, mixed_labels = pairs(rng, channels)
    figure = plotting.plot_pairs(images, labels, mixed, mixed_labels, ["a", "b", "c"])
    texts = [ax.get_xlabel() for ax in figure.axes]
    assert texts == ["a", "b", "c", "b", "a", "", *["50 % a\n50 % b"] * 2, "c"]
    shown = [ax.images[0].get_array() if ax.images else None for ax in figure.axes]
    assert [image is None for image in shown] == [i == 5 for i in range(9)]
    scaled = np.squeeze(images)
    if channels == 3:
        scaled = (scaled - images.min()) / (images.max() - images.min())
    np.testing.assert_allclose(shown[3], scaled[1])
    figure.canvas.draw()


def test_pairs_take_class_numbers_and_show_at_most_the_columns_asked_for(rng):
    images, _, mixed, mixed_labels = pairs(rng, 3)
    figure = plotting.plot_pairs(
        images, np.arange(3), mixed, mixed_labels, max_columns=2
    )
    texts = [ax.get_xlabel() for ax in figure.axes]
    assert texts == ["0", "1", "1", "0", "50 % 0\n50 % 1", "50 % 0\n50 % 1"]


def test_a_pair_of_one_class_does_not_look_like_an_image_that_was_kept(rng):
    images, labels = rng.uniform(size=(3, 4, 4)), np.eye(3)[[0, 0, 1]]
    mixed, mixed_labels = (reference.averaged(x, PARTNERS) for x in (images, labels))
    figure = plotting.plot_pairs(images, labels, mixed, mixed_labels, ["a", "b", "c"])
    texts = [ax.get_xlabel() for ax in figure.axes[6:]]
    assert texts == [*["a,\nboth of the pair"] * 2, "b"]


@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_table_is_shown_with_its_names_and_in_per_cent(rng, num_classes):
    table = rng.dirichlet(np.ones(num_classes), size=num_classes)
    names = [f"class {k}" for k in range(num_classes)]
    figure = plotting.plot_table(table, names)
    ax, bar = figure.axes  # one colour scale
    shown = ax.images[0].get_array()
    assert shown.mask.tolist() == np.eye(num_classes, dtype=bool).tolist()
    np.testing.assert_allclose(shown.filled(0), 100 * table * (1 - np.eye(num_classes)))
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    numbers = [float(text.get_text()) for text in ax.texts]
    np.testing.assert_allclose(numbers, 100 * table.ravel(), atol=0.5)
    assert figure.get_suptitle().endswith("?")
    figure.canvas.draw()


@pytest.mark.parametrize("num_classes", [3, 40])
def test_a_dollar_in_a_name_is_drawn_as_one(rng, tmp_path, num_classes):
    names = [f"$a_{number}_$" for number in range(num_classes)]
    table = rng.dirichlet(np.ones(num_classes), num_classes)
    plotting.plot_table(table, names).savefig(tmp_path / "table.png")
    figure = plotting.plot_pairs(*pairs(rng, 3), ["$a_", "_$b$", "c$"])
    figure.savefig(tmp_path / "pairs.png")


def test_of_many_classes_the_most_confused_pairs_are_named(rng):
    table = 0.9 * np.eye(100) + 0.1 / 100
    table[3, 7] = 0.3
    table[70, 20] = 0.2
    figure = plotting.plot_table(table, [f"class {k}" for k in range(100)])
    ax = figure.axes[1]
    texts = [label.get_text() for label in ax.get_yticklabels()]
    assert texts[:2] == ["class 3 with class 7", "class 70 with class 20"]
    assert len(texts) == plotting.PAIRS_SHOWN
    widths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(widths[:3], [30, 20, 0.1])
    figure.canvas.draw()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, y: plotting.plot_table(x[0, :2]), r"\(num_classes, num_classes\)"),
        (lambda x, y: plotting.plot_table(y, ["a"]), "`class_names` must have 3 entr"),
        (
            lambda x, y: plotting.plot_pairs(x, y, x[:2], y),
            "one batch before and after",
        ),
        (lambda x, y: plotting.plot_pairs(x, y, x, y[:, 0]), "one batch before and"),
        (lambda x, y: plotting.plot_pairs(y, y, x, y), r"`images` must have shape"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((3, 4, 4)), np.eye(3))


def test_a_notebook_shows_the_figure():
    figure = plotting.plot_table(np.eye(3))
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_without_matplotlib_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "keras_mixavg.plotting")
    with pytest.raises(ImportError, match="`pip install matplotlib`"):
        importlib.import_module("keras_mixavg.plotting")
