import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import contract
import keras
import pytest

import keras_mixavg


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("component", contract.COMPONENTS)
def test_every_component(component, check):
    check(*contract.COMPONENTS[component])


def test_every_public_class_is_a_component():
    public = {name for name in keras_mixavg.__all__ if name[0].isupper()}
    assert public <= set(contract.COMPONENTS)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_all_components_train_together(jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch compiles for a minute; test_modes.py has it do so once")
    contract.all_of_them_train_together_in_one_compiled_fit(jit_compile)


@pytest.mark.once
def test_importing_the_package_takes_neither_tensorflow_nor_matplotlib():
    """Keras imports its backend (whose torch imports matplotlib if it is there)."""
    for file in Path(keras_mixavg.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            assert not any(name.startswith("tensorflow") for name in names), file
    backends = [name for name in ("jax", "torch") if importlib.util.find_spec(name)]
    for backend in backends:
        program = (
            "import sys, keras\n"
            "before = set(sys.modules)\n"
            "import keras_mixavg\n"
            "assert not {'tensorflow', 'matplotlib'} & (set(sys.modules) - before)"
        )
        environment = {**os.environ, "KERAS_BACKEND": backend}
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
