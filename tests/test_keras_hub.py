"""The recipe for KerasHub, on every backend: tasks train, and keep their tables."""

import re
from pathlib import Path

import numpy as np
import pytest

keras_hub = pytest.importorskip("keras_hub")
from tolerances import assert_close  # noqa: E402
from training import networks  # noqa: E402

PAGE = Path(__file__).parent.parent / "docs/recipes/keras_hub.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of KerasHub


@pytest.mark.usefixtures("eagerly")
@pytest.mark.filterwarnings("ignore:Even though")  # that tf.data keeps its graphs
# Of Keras, on saving, loading, shuffling, and what has no int8.
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.filterwarnings("ignore:`compile\\(\\)` was not called")
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")  # in 0.29
def test_the_recipe_for_keras_hub_runs_by_itself(tmp_path, monkeypatch):
    """Paste it into an empty file. The page itself compares the tables."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(BLOCK.findall(PAGE.read_text()))
    assert code.count("assert ") == 2
    exec(compile(code, PAGE.name, "exec"), {"__name__": "__main__"})


@pytest.mark.once
def test_a_preset_trains_its_head_alone_and_then_all_but_normalization(tmp_path, rng):
    backbone = keras_hub.models.ResNetBackbone(
        image_shape=(None, None, 3),
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
    )
    converter = keras_hub.layers.ResNetImageConverter((32, 32), scale=0.5, offset=-1.0)
    task = keras_hub.models.ImageClassifier(
        backbone=backbone,
        num_classes=7,
        preprocessor=keras_hub.models.ResNetImageClassifierPreprocessor(converter),
    )
    task.save_to_preset(tmp_path / "preset")
    name = f"{networks.HUB}{tmp_path / 'preset'}"
    model = networks.pretrained(name, networks.PRESET, (16, 16, 3), 3)
    assert model.output_shape == (None, 3)
    own = networks.backbone_of(model)
    for found, expected in zip(own.get_weights(), backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    images = rng.integers(0, 256, (2, 16, 16, 3)).astype("float32")
    expected = model.layers[-1](0.5 * images - 1.0)
    assert_close(model(images), expected, trained=True)
    networks.freeze(model)
    assert len(model.trainable_weights) == 2
    networks.thaw(model)
    trained = {w.path.split("/")[-1] for w in model.trainable_weights}
    assert trained == {"kernel", "bias"} and len(model.trainable_weights) > 2
    random = networks.pretrained(name, None, (16, 16, 3), 3)
    kernels = [networks.backbone_of(m).get_weights()[0] for m in (model, random)]
    assert not np.array_equal(*kernels)
