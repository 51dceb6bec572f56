"""The start of the command line. From here on a signal ends it with one line, also while the rest is still being imported."""

import atexit
import errno
import gc
import os
import sys

INTERRUPTED = 130
"""The exit code of a command that a signal ended."""
BAD_OUTPUT = 3
"""That of a command that cannot write its output."""


def main() -> None:
    """Run the command line, as ``ckptdiff`` and ``python -m ckptdiff`` do."""
    try:
        from ckptdiff.io.signals import CLOSED_PIPE, block, install

        atexit.register(block)  # as the first, so that it is run as the last: until then a signal ends what hangs
        install(_leave)
    except KeyboardInterrupt:
        _leave()
    # NumPy's BLAS starts a thread a core as NumPy is imported, which takes 0.05 s of CPU; what needs BLAS has threads of its own
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(100_000, 20, 20)  # tables of a hundred thousand tensors are no cycles: looking for some takes a fifth of the time
    from ckptdiff.cli.main import main as run

    try:
        run()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # if a SIGINT came within an exec(), as imports use it, Python -m would kill itself by it
            try:
                _flush()
            finally:
                os._exit(INTERRUPTED)
        try:
            _flush()
        except OSError as error:
            _say_what_failed(error, CLOSED_PIPE if error.errno == errno.EPIPE else BAD_OUTPUT)
        except ValueError:
            pass  # the caller has closed it
        raise


def _flush() -> None:
    if sys.stdout is not None:  # None if the caller has closed it, as >&- does
        sys.stdout.flush()


def _say_what_failed(error: OSError, code: int) -> None:
    """End the process if what it has printed cannot be written: Python would try again, and print a traceback."""
    try:
        if code == BAD_OUTPUT:
            os.write(2, f"ckptdiff: error: standard output: {error.strerror}\n".encode())
    finally:
        os._exit(code)


def _leave(*_: object) -> None:
    """End the process. Before a command nothing is under way, and an exception would break whatever Python is importing."""
    try:
        os.write(2, b"ckptdiff: interrupted\n")
    finally:  # stderr may be closed
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
