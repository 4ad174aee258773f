"""One progress bar over the epochs of several runs."""

import sys
import time

import keras

from training.clock import clock


class Progress(keras.callbacks.Callback):
    """A bar over the epochs of all runs, and how long they will take.

    Args:
        runs: how many there are.
        epochs: of each.
        advice: a function of the seconds that are left, whose text is printed; None for
            no text.
        short: how many epochs of each, the first, are shorter than the others.
    """

    def __init__(self, runs, epochs, advice=None, short=0):
        super().__init__()
        self.epochs, self.advice, self.short = epochs, advice, short
        self.total, self.done, self.seen = runs * epochs, 0, 0
        verbose = 1 if sys.stdout.isatty() else 2
        self.bar = keras.utils.Progbar(self.total, verbose=verbose, unit_name="epoch")
        self.begin, self.estimated = time.perf_counter(), False

    def on_epoch_end(self, epoch, logs=None):
        self.seen += 1
        self.bar.update(min(self.done + self.seen, self.total - 1))
        seconds = time.perf_counter() - self.begin
        self.begin = time.perf_counter()
        # The first of the long epochs compiles, and takes longer still.
        long = self.seen - self.short
        if not self.estimated and (long > 1 or (long == 1 and seconds > 60)):
            self.estimated = True
            self.print_estimate(seconds)

    def print_estimate(self, seconds):
        left = (self.total - self.done - self.seen) * seconds
        print(f"\nAn epoch takes {seconds:.1f} s: at most {clock(left)} to go.")
        if self.advice and (text := self.advice(left)):
            print(text)

    def finished(self, text):
        """Call this after each run, with a line about it. Count earlier runs too."""
        self.done, self.seen = self.done + self.epochs, 0
        print(f"\r{text}{' ' * 40}")
        self.bar.update(self.done, finalize=False)
