"""Training on small images: what the programs in the folder above share.

A program brings its data and calls `fit.main`:

    from training import arguments, fit

    parser = arguments.parser(__doc__)            # flags that every program has
    parser.add_argument("--folder")               # a flag of its own
    args = arguments.parse(parser, name="mine")   # checks them, sets `args.out`
    fit.main(args, load)

`load(args)` returns `(images, labels)` to train on, `(images, labels)` to test on, and
the names of the classes. Images are uint8 of one shape, labels are class numbers, both
NumPy arrays. `fit.train(args, *load(args))` is one run without messages. A program that
makes several changes `args.method`, `args.seed` and `args.out` between them.

| file | content |
|---|---|
| `arguments.py` | the flags |
| `data.py` | which images to train on, with which labels |
| `batches.py` | `tf.data`: shuffled, cropped, flipped; repeatable |
| `on_device.py` | the same on the device, on JAX without TensorFlow |
| `methods.py` | the methods to compare: mixing, loss and callback, a class each |
| `mixing.py` | mixup and CutMix as published |
| `networks.py` | the networks, a function each |
| `fit.py` | a run: devices, schedule, `model.fit`, Ctrl-C and `--resume` |
| `scores.py` | accuracy, likelihood and calibration from logits |
| `record.py` | what a run writes: `result.json`, `history.csv`, pictures |
| `compare.py` | tables of methods, and intervals of paired differences |
| `pictures.py` | curves, calibration, mixed images, confused classes |
| `progress.py` | a progress bar for several runs |
| `folder.py` | a folder of class folders of images |
| `answer.py`, `page.py` | the answer of image_folder.py, and its HTML page |

To try another method, subclass one of `methods.py` and pass `arguments.parser` a dict
like `methods.METHODS`.
"""

import os
import re
import sys

# TensorFlow and Keras read these when the modules here import them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_chosen = re.findall(r"--backend[= ](\w+)", " ".join(sys.argv))
if _chosen:
    os.environ["KERAS_BACKEND"] = _chosen[-1]
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
