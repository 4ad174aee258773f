"""The switch of a table: on, off, whose, and what a reset leaves."""

import gc

import numpy as np
import pytest

from keras_mixavg.soft_label_table import SoftLabelTable, numpy_of
from keras_mixavg.switch import Switch

pytestmark = pytest.mark.numerical


class Model:
    """What a switch looks at: `fit` gives a model a History of its own."""

    history = None


@pytest.fixture
def table():
    table = SoftLabelTable(collect="all")
    table.build(3)
    return table


def test_resetting_the_metrics_turns_it_off_and_loses_nothing(table, rng):
    table.switch.turn_on(0.5)
    np.testing.assert_array_equal(numpy_of(table.switch.variable), [0.5, 1])
    labels = rng.dirichlet(np.ones(3), size=4).astype("float32")
    table.add_batch(labels, labels, np.ones(4, "float32"))
    evidence = numpy_of(table.cross)
    table.reset_state()
    np.testing.assert_array_equal(numpy_of(table.switch.variable), [0, 0])
    np.testing.assert_array_equal(numpy_of(table.cross), evidence)


def test_a_reset_turns_it_off_unless_the_fit_that_turned_it_on_still_runs(table):
    model, switch = Model(), table.switch
    switch.claim(model)
    model.history = object()
    switch.turn_on(0.5)
    switch.reset()
    assert switch.is_on
    np.testing.assert_array_equal(numpy_of(switch.variable), [0.5, 1])
    model.history = object()  # of the next `fit`
    switch.reset()
    assert not switch.is_on
    np.testing.assert_array_equal(numpy_of(switch.variable), [0, 0])


def test_it_belongs_to_the_first_model():
    model, switch = Model(), Switch()
    assert not switch.attached and switch.owner is None
    switch.claim(model)
    switch.claim(model)
    assert switch.attached and switch.owner is model
    with pytest.raises(ValueError, match="has trained another model"):
        switch.claim(Model())
    del model
    gc.collect()
    assert switch.attached and switch.owner is None  # nor does it keep the model


def test_its_user_is_the_callback_that_last_turned_it_on():
    first, second, switch = Model(), Model(), Switch()
    for user in (first, second, None):
        switch.turn_on(0.5, user)
        assert switch.user is user
    switch.turn_on(0.5, first)
    switch.turn_off()
    assert switch.user is first
