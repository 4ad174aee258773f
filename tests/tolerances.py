"""How far two results that should be the same may be apart, per dtype.

Exact, in the tests, is what one compiled function makes of the same bytes twice in one
process, what is read back as it was written, integers, and the draws of counter-based
generators. Everything else depends on the processor: on the width of its vectors, on
the threads that share a sum, and on how a function came to be compiled.
"""

TOLERANCES = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
"""Relative error of one rounding or a few."""
