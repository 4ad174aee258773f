"""Networks for small images: PreAct ResNets, and a fast one for a CPU.

He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027. As usual
for 32 and 64 pixels the stem is a 3x3 convolution, and there is no max-pooling.

Each takes images of 0 to 255 and returns logits. The decay is L2 on the kernels, not on
batch normalization or biases: `weight_decay / 2 * sum(kernel**2)` in the loss, which
equals `weight_decay` of `torch.optim.SGD`.
"""

import functools
import importlib.util
from pathlib import Path

import keras
from keras import layers


def preact_resnet18(shape, num_classes, weight_decay=0.0):
    """11.17 M parameters at 10 classes."""
    return preact_resnet(shape, num_classes, (64, 128, 256, 512), 2, weight_decay)


def small(shape, num_classes, weight_decay=0.0, width=32):
    """0.31 M parameters at 10 classes; 0.08 M with `width=16`."""
    widths = (width, 2 * width, 4 * width)
    return preact_resnet(shape, num_classes, widths, 1, weight_decay)


def tiny(shape, num_classes, weight_decay=0.0):
    """0.08 M parameters at 10 classes."""
    return small(shape, num_classes, weight_decay, width=16)


def fast(shape, num_classes, weight_decay=0.0, width=32):
    """1.19 M parameters, 21.5 M multiply-adds an image of 32 px, at 100 classes.

    It memorises some ten thousand training images and trains on a CPU: it is strided
    and pooled early, with three residual connections.
    """
    convolution = convolutions(weight_decay)

    def block(x, filters, strides=1):
        x = normalized(convolution(x, filters, strides=strides))
        return layers.Activation("gelu")(x)

    inputs = keras.Input(shape)
    x = block(scaled(inputs), width, strides=2)
    for filters in (2 * width, 4 * width, 8 * width):
        x = layers.MaxPooling2D()(block(x, filters))
        x = layers.Add()([x, block(x, filters)])
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, logits(x, num_classes, weight_decay))


NETWORKS = {
    "preact_resnet18": preact_resnet18,
    "small": small,
    "tiny": tiny,
    "fast": fast,
    "fast_8": functools.partial(fast, width=8),
    "fast_16": functools.partial(fast, width=16),
    "fast_64": functools.partial(fast, width=64),
}

ABOUT = {  # in a few words
    "preact_resnet18": "PreAct ResNet-18, 11 M parameters",
    "small": "a narrow ResNet of 8 layers, 0.3 M",
    "tiny": "half as wide, 0.08 M",
    "fast": "7 convolutions that a CPU can train, 1.2 M",
    "fast_8": "a quarter as wide, 0.08 M",
    "fast_16": "half as wide, 0.3 M",
    "fast_64": "twice as wide, 4.7 M",
}
APPLICATIONS = {}  # of other programs, with the signature of keras.applications
NONE = "none"  # weights: train from scratch
PRESET = "preset"  # weights of a network of KerasHub
HUB = "hub:"  # prefix of the name of a network of KerasHub


def of_name(name):
    """A network as a function: of NETWORKS, `keras.applications` or KerasHub."""
    if name in NETWORKS:
        return NETWORKS[name]
    if name.startswith(HUB):
        return functools.partial(from_hub, name, False)
    if callable(application_named(name)):
        return functools.partial(application, name)
    raise ValueError(
        f"{name} is none of {', '.join(NETWORKS)}, nor a network of keras.applications "
        "such as EfficientNetV2B0, nor hub: followed by a preset of KerasHub"
    )


def application_named(name):
    """A function with the signature of those of `keras.applications`, or None."""
    return APPLICATIONS.get(name) or getattr(keras.applications, name, None)


def check_weights(name, weights):
    """Refuse weights that do not exist or do not fit the network."""
    if name.startswith(HUB) and importlib.util.find_spec("keras_hub") is None:
        raise ValueError(f"{name} needs KerasHub: pip install keras-hub")
    if weights == NONE:
        return
    if name.startswith(HUB) or weights == PRESET:
        if not (name.startswith(HUB) and weights == PRESET):
            raise ValueError(
                f"{name} and --weights {weights}: a network of KerasHub, hub:PRESET, "
                "takes the weights preset or none; no other network takes preset"
            )
        return
    if name in NETWORKS:
        raise ValueError(
            f"{name} has no weights; --weights {weights} is for a network of "
            "keras.applications, such as --network EfficientNetV2B0"
        )
    if weights != "imagenet" and not Path(weights).is_file():
        raise ValueError(
            f"{name}: --weights must be imagenet, none, or a file of weights without "
            f"the top, and there is no file {weights}"
        )


def pretrained(name, weights, shape, num_classes, weight_decay=0.0, image_size=None):
    """A pretrained network with a new last layer.

    `weights=None` makes them random. The network itself scales images to `image_size`
    pixels a side; an average of two is the same before and after.
    """
    if name.startswith(HUB):
        model = from_hub(name, weights is not None, shape, num_classes)
        thaw(model)
        return model
    network, inputs = application_named(name), keras.Input(shape)
    images = layers.Resizing(image_size, image_size)(inputs) if image_size else inputs
    backbone = network(
        weights=weights,
        include_top=False,
        input_shape=images.shape[1:],
        pooling="avg",
    )
    backbone.name = "backbone"
    features = backbone(preprocessed(images, network))
    model = keras.Model(inputs, logits(features, num_classes, weight_decay))
    thaw(model)
    return model


def from_hub(name, load_weights, shape, num_classes, weight_decay=0.0):
    """The image classifier of a preset of KerasHub, with a new last layer."""
    import keras_hub

    task = keras_hub.models.ImageClassifier.from_preset(
        name.removeprefix(HUB), load_weights=load_weights, num_classes=num_classes
    )
    if task.preprocessor is None:
        raise ValueError(f"{name} has no preprocessor: choose another preset.")
    converter = task.preprocessor.image_converter
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    inputs = keras.Input(shape)
    return keras.Model(inputs, task(layers.Rescaling(scale, offset)(inputs)))


def backbone_of(model):
    """The pretrained part of a `pretrained` network."""
    names = [layer.name for layer in model.layers]
    if "backbone" in names:
        return model.get_layer("backbone")
    return model.layers[-1].backbone  # KerasHub


def freeze(model):
    """Let only the new last layer of a `pretrained` network train."""
    backbone_of(model).trainable = False


def thaw(model):
    """Let all of it train, except batch normalization, which keeps its statistics.

    (`training=False` in the call of the backbone would not do: the model passes its own
    `training` on.)
    """
    backbone_of(model).trainable = True
    # The public `layers` leaves out those inside of other layers.
    for layer in backbone_of(model)._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False


def preprocessed(inputs, network):
    """Scale images of 0 to 255 as the weights of a network expect."""
    module = importlib.import_module(network.__module__)
    return module.preprocess_input(inputs)


def application(name, shape, num_classes, weight_decay=0.0):
    """A network of `keras.applications` with random weights, without decay."""
    network = application_named(name)(
        weights=None, input_shape=shape, classes=num_classes, classifier_activation=None
    )
    own = (layers.Rescaling, layers.Normalization)
    if any(isinstance(layer, own) for layer in network.layers):
        return network  # it takes images of 0 to 255
    inputs = keras.Input(shape)
    return keras.Model(inputs, network(scaled(inputs)))


def preact_resnet(shape, num_classes, widths, blocks, weight_decay=0.0):
    """`blocks` residual blocks of each width."""
    convolution = convolutions(weight_decay)

    def activation(x):
        return layers.ReLU()(normalized(x))

    inputs = keras.Input(shape)
    x = convolution(scaled(inputs), widths[0])
    for stage, width in enumerate(widths):
        for block in range(blocks):
            strides = 2 if stage > 0 and block == 0 else 1
            active = activation(x)
            if x.shape[-1] != width or strides > 1:
                x = convolution(active, width, 1, strides)
            y = convolution(active, width, 3, strides)
            y = convolution(activation(y), width)
            x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(activation(x))
    return keras.Model(inputs, logits(x, num_classes, weight_decay))


def decay(weight_decay):
    return keras.regularizers.L2(weight_decay / 2) if weight_decay else None


def convolutions(weight_decay):
    """A function that makes convolutions without bias."""

    def convolution(x, width, size=3, strides=1):
        return layers.Conv2D(
            width,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=decay(weight_decay),
        )(x)

    return convolution


def normalized(x):
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)


def scaled(inputs):
    return layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)


def logits(x, num_classes, weight_decay):
    return layers.Dense(
        num_classes, kernel_regularizer=decay(weight_decay), dtype="float32"
    )(x)
