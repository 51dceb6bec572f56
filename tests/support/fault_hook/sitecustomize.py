"""With this folder in PYTHONPATH and CKPTDIFF_TEST_FAULTS=FOLDER:N, the first N jobs of all workers of Ray together fail."""

import os
import sys

if "CKPTDIFF_TEST_FAULTS" in os.environ and any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
    from ckptdiff.patching.build import RangeBuilder
    from ckptdiff.patching.encode import GroupEncoder

    folder, _, count = os.environ["CKPTDIFF_TEST_FAULTS"].rpartition(":")

    def failing(call):  # type: ignore[no-untyped-def]
        def wrapper(self, job):  # type: ignore[no-untyped-def]
            for number in range(int(count)):
                try:
                    os.close(os.open(f"{folder}/fault-{number}", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                raise RuntimeError("a fault of the test")
            return call(self, job)

        return wrapper

    for work in (GroupEncoder, RangeBuilder):
        work.__call__ = failing(work.__call__)  # type: ignore[method-assign]
