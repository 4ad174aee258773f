"""Versions, machine and backend of a run."""

import os
import platform
from importlib import metadata

PACKAGES = (
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "keras-cv",
    "numpy",
    "keras-mixavg",
    "tensorflow-datasets",
)


def versions():
    """The versions of Python and of the installed packages."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine():
    return f"{platform.machine()}, {os.cpu_count()} cores"


def environment():
    """Versions, the machine and its devices, as a dict for JSON."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        devices = [f"{d.device_kind} {d.id}" for d in jax.devices()]
    elif backend == "torch":
        import torch

        gpus = range(torch.cuda.device_count())
        devices = [f"{torch.cuda.get_device_name(i)} {i}" for i in gpus] or ["CPU"]
    else:
        import tensorflow as tf

        devices = [device.name for device in tf.config.list_logical_devices()]
    return {
        "backend": backend,
        "versions": versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "devices": devices,
        },
    }
