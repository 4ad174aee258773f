"""The recipe for KerasHub, on every backend: tasks train, and keep their tables."""

import re
from pathlib import Path

import pytest

pytest.importorskip("keras_hub")

PAGE = Path(__file__).parent.parent / "docs/recipes/keras_hub.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


# Of Keras and KerasHub, on saving, loading and shuffling.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`compile\\(\\)` was not called")
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_the_recipe_for_keras_hub_runs_by_itself(tmp_path, monkeypatch):
    """Pasted into an empty file; it compares the tables before and after by itself."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(BLOCK.findall(PAGE.read_text()))
    assert code.count("assert ") == 2
    exec(compile(code, PAGE.name, "exec"), {"__name__": "__main__"})
