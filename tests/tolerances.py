"""How much two results that should be the same may differ, for each dtype.

Exact in the tests are, and nothing else: the results of one compiled function on the
same bytes in one process; contents of a file read back; integers; the draws of a
counter-based generator of one backend; and the average of two numbers, which is rounded
once. Everything else depends on the processor: the width of its vectors, the threads
that share a sum, and the compilation. Only fuzz tests, which cannot know how long they
train, finite differences and statistics have wider limits of their own.
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
    """Assert that two results computed in `dtype` are the same. `of` names them."""
    tolerance = TOLERANCES[dtype][trained]
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance, atol=tolerance, err_msg=of
    )


def close(expected, dtype="float32", trained=False):
    """An object that equals every float that is the same as `expected`."""
    tolerance = TOLERANCES[dtype][trained]
    return pytest.approx(expected, rel=tolerance, abs=tolerance)
