"""Averaged pairs and global soft labels for Keras 3 classifiers.

`MixAvg` averages random pairs in the input pipeline, `SoftLabelCrossentropy` trains
on their soft labels, and `GlobalSoftLabel` keeps the global soft labels up to date
while `model.fit` runs. The method card is README.md in this folder.
"""

from keras_mixavg.callbacks import GlobalSoftLabel
from keras_mixavg.current_epoch import CurrentEpoch
from keras_mixavg.losses import SoftLabelCrossentropy
from keras_mixavg.metrics import SoftLabelAccuracy, SoftLabelTopKAccuracy
from keras_mixavg.mix_avg import MixAvg

__version__ = "0.2.0"

__all__ = [
    "CurrentEpoch",
    "GlobalSoftLabel",
    "MixAvg",
    "SoftLabelAccuracy",
    "SoftLabelCrossentropy",
    "SoftLabelTopKAccuracy",
    "__version__",
]
