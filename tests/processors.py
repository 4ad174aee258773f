"""Run the numerical tests as on processors with fewer instructions or cores.

    python tests/processors.py [BACKEND ...]

TensorFlow, XLA, oneDNN, OpenBLAS, MKL, NumPy and torch choose their code by the
instructions of the processor, and each can be restricted. Runs the tests marked
`numerical` under each setting on each backend, and fails if any fails.
"""

import os
import subprocess
import sys

import numpy as np

NOT_ON_OTHERS = "numerical and not once and not one_backend"
MARKS = {"tensorflow": "numerical", "jax": NOT_ON_OTHERS, "torch": NOT_ON_OTHERS}
XLA = "--xla_force_host_platform_device_count=2"  # as in conftest.py

found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
wide = [name for name in found if name.startswith(("AVX512", "X86_V4"))]
LIMITS = {  # the instructions that a library may use: AVX2, SSE 4
    "ONEDNN_MAX_CPU_ISA": ("AVX2", "SSE41"),
    "XLA_FLAGS": (f"{XLA} --xla_cpu_max_isa=AVX2", f"{XLA} --xla_cpu_max_isa=SSE4_2"),
    "OPENBLAS_CORETYPE": ("Haswell", "Nehalem"),
    "MKL_ENABLE_INSTRUCTIONS": ("AVX2", "SSE4_2"),
    "ATEN_CPU_CAPABILITY": ("avx2", "default"),
    "NPY_DISABLE_CPU_FEATURES": (" ".join(wide), " ".join(found)),
}
SETTINGS = {
    "all instructions, all cores for each operation": {},
    "AVX2": {variable: avx2 for variable, (avx2, _) in LIMITS.items()},
    "SSE 4": {variable: sse4 for variable, (_, sse4) in LIMITS.items()},
    "one core, and TensorFlow without oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
}


def run(backend, name):
    """Whether the tests pass."""
    environment = {**os.environ, **SETTINGS[name], "KERAS_BACKEND": backend}
    # As users compile, which the other tests do not.
    environment |= {"OPTIMIZE_GRAPHS": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    workers = "0" if "all cores" in name else "auto"  # workers share the cores
    command = [sys.executable, "-m", "pytest", "-n", workers, "--dist", "worksteal"]
    may_choose = hasattr(os, "sched_setaffinity")
    cores = os.sched_getaffinity(0) if may_choose else ()
    if "one core" in name and may_choose:
        os.sched_setaffinity(0, {min(cores)})
    left_out = []
    if backend != "torch" and name == "SSE 4":  # for which XLA compiles no float16
        left_out.append("(bfloat16 or not float16)")
    if backend == "tensorflow" and "ONEDNN_MAX_CPU_ISA" in environment:
        # TensorFlow asks the processor, not oneDNN, whether 16 bits can be multiplied.
        left_out.append("not mixed_precision and not (floatx and bfloat16)")
    if left_out:
        command += ["-k", " and ".join(left_out)]
    print(f"\n{backend}: {name}", flush=True)
    try:
        done = subprocess.run([*command, "-m", MARKS[backend]], env=environment)
    finally:
        if may_choose:
            os.sched_setaffinity(0, cores)
    return done.returncode == 0


if __name__ == "__main__":
    failed = [
        f"{backend}: {name}"
        for backend in sys.argv[1:] or MARKS
        for name in SETTINGS
        if not run(backend, name)
    ]
    sys.exit(f"Failed: {'; '.join(failed)}" if failed else 0)
