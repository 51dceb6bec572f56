"""On a heavy test's path (.ci/heavy.py): each Python process notes the files of this repository that it imported."""

import atexit
import multiprocessing.util
import os
import sys


def note(*_):
    root = os.environ["CI_ROOT"] + os.sep
    files = {os.path.realpath(path) for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))}
    with open(os.path.join(os.environ["CI_NOTES"], str(os.getpid())), "w") as out:
        out.writelines(f"{path[len(root) :]}\n" for path in files if path.startswith(root) and path.endswith(".py"))


atexit.register(note)
# Processes that multiprocessing forks run its own finalizers at their end, not those of atexit, and begin with none.
multiprocessing.util.register_after_fork(note, lambda _: multiprocessing.util.Finalize(None, note, exitpriority=0))
