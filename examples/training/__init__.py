"""One way to train on small images, that the programs beside this folder share.

A program brings its data and calls `fit.main`:

    from training import arguments, fit

    parser = arguments.parser(__doc__)            # flags that every program has
    parser.add_argument("--folder")               # its own
    args = arguments.parse(parser, name="mine")   # checked; `args.out` is set
    fit.main(args, load)

`load(args)` returns `(images, labels)` to train on, `(images, labels)` to test on, and
the names of the classes; images are uint8 of one shape, labels class numbers, both
NumPy arrays. `fit.train(args, *load(args))` is one run without messages, for a program
that makes several: change `args.method`, `args.seed` and `args.out` between them.

| file | what is in it |
|---|---|
| `arguments.py` | the flags |
| `data.py` | which images, and with which labels |
| `batches.py` | `tf.data`: shuffled, cropped, flipped; repeatable |
| `on_device.py` | the same on JAX alone, on the device |
| `methods.py` | what is compared: mixing, loss and callback, a class each |
| `networks.py` | the networks, a function each |
| `fit.py` | a run: devices, schedule, `model.fit`, Ctrl-C and `--resume` |
| `scores.py` | accuracy, likelihood and calibration from logits |
| `compare.py` | means, and intervals of paired differences, over seeds |
| `folder.py` | a folder with a folder of images for each class |
| `answer.py` | what several runs of several methods say, and the next step |
| `pictures.py`, `page.py` | of them: pictures, and one HTML page |
| `record.py` | what a run leaves behind: `result.json`, `history.csv`, pictures |

Another method is a subclass of one in `methods.py`, in a dict like `methods.METHODS`
that `arguments.parser` gets.
"""

import os
import re
import sys

# TensorFlow and Keras read these when they are imported, and the modules here do so.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_chosen = re.findall(r"--backend[= ](\w+)", " ".join(sys.argv))
if _chosen:
    os.environ["KERAS_BACKEND"] = _chosen[-1]
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
