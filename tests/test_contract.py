import ast
from pathlib import Path

import contract
import pytest

import keras_mixavg

pytestmark = [pytest.mark.core, pytest.mark.numerical]


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("component", contract.COMPONENTS)
def test_every_component(component, check):
    check(*contract.COMPONENTS[component])


def test_every_public_class_is_a_component():
    public = {name for name in keras_mixavg.__all__ if name[0].isupper()}
    assert public <= set(contract.COMPONENTS)


def test_all_components_train_together():
    """As Keras compiles by itself; test_modes.py has the other ways."""
    contract.all_of_them_train_together_in_one_fit()


@pytest.mark.once
def test_no_module_imports_tensorflow_when_it_is_imported():
    """test_workers.py shows in other processes that nothing else does so."""
    for file in Path(keras_mixavg.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            assert not any(name.startswith("tensorflow") for name in names), file
