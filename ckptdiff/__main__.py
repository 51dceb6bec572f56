"""The start of the command line. From here on a signal ends it with one line, also while the rest is still being imported."""

import os
import sys

INTERRUPTED = 130
"""The exit code of a command that a signal ended."""


def main() -> None:
    """Run the command line, as ``ckptdiff`` and ``python -m ckptdiff`` do."""
    try:
        from ckptdiff.io.signals import block, install

        install(_leave)
    except KeyboardInterrupt:
        _leave()
    from ckptdiff.cli.main import main as run

    try:
        run()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # if a SIGINT came within an exec(), as imports use it, Python -m would kill itself by it
            try:
                sys.stdout.flush()
            finally:
                os._exit(INTERRUPTED)
        try:
            sys.stdout.flush()
        except OSError:
            pass  # Python tries again when it ends, and says what failed
        block()
        raise


def _leave(*_: object) -> None:
    """End the process. Before a command nothing is under way, and an exception would break whatever Python is importing."""
    try:
        os.write(2, b"ckptdiff: interrupted\n")
    finally:  # stderr may be closed
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
