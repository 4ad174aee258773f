"""How far two results that should be the same may be apart, per dtype.

Exact, in the tests, is what one compiled function makes of the same bytes twice in one
process, what is read back as it was written, integers, the draws of generators that
count, and the average of two numbers, which is rounded once. Everything else depends
on the processor: on the width of its vectors, on the threads that share a sum, and on
how a function came to be compiled.
"""

import numpy as np
import pytest

TOLERANCES = {
    "float64": (1e-12, 1e-10),
    "float32": (1e-6, 1e-5),
    "float16": (1e-3, 1e-2),
    "bfloat16": (8e-3, 5e-2),
}
"""After one rounding or a few; after some steps of training. Relative to the larger of
1 and the value."""


def assert_close(actual, expected, dtype="float32", trained=False, of=""):
    """That two results of computations in `dtype` are the same, `of` what is said."""
    tolerance = TOLERANCES[dtype][trained]
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance, atol=tolerance, err_msg=of
    )


def close(expected, dtype="float32", trained=False):
    """What equals a float that is the same as `expected`."""
    tolerance = TOLERANCES[dtype][trained]
    return pytest.approx(expected, rel=tolerance, abs=tolerance)
