"""Run functions in new processes, which need not load Keras again."""

import multiprocessing
import os
import subprocess
import sys
import traceback

# Each process is a copy of one that has loaded this, and has not used it yet. The
# package is not part of it: some processes must do without.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tensorflow", "keras"])
LONGEST = 600  # seconds that a test waits for a process


def _run(function, arguments, folder):
    os.chdir(folder)
    for stream, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), stream)
    try:
        function(*arguments)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


def start(function, *arguments, folder):
    """Run `function` in `folder`. Its output goes to stdout.txt and stderr.txt."""
    process = CONTEXT.Process(target=_run, args=(function, arguments, folder))
    process.start()
    return process


def run(function, *arguments, folder):
    """`start`, wait for success, and return the output."""
    process = start(function, *arguments, folder=folder)
    process.join(LONGEST)
    process.kill()
    assert process.exitcode == 0, (folder / "stderr.txt").read_text()[-3000:]
    return (folder / "stdout.txt").read_text()


def run_program(program, folder, backend, *arguments):
    """Run a program that loads Keras itself, with a backend, and return its output.

    It is written to `folder`, and runs where this process does.
    """
    file = folder / "program.py"
    file.write_text(program)
    path = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run(
        [sys.executable, file, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": backend},
        timeout=LONGEST,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
