"""Tiny-ImageNet for TensorFlow Datasets: importing this registers `tiny_imagenet`."""

from .tiny_imagenet_dataset_builder import Builder as Builder
