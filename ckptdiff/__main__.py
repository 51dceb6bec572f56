"""Where the command line begins: from here on a signal ends it with one line, also while all the rest is still imported."""

import os
import sys

INTERRUPTED = 130


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
        if end.code == INTERRUPTED:  # run by -m, Python would end itself by SIGINT if that came within an exec(), as imports use it
            try:
                sys.stdout.flush()
            finally:
                os._exit(INTERRUPTED)
        try:
            sys.stdout.flush()
        except OSError:
            pass  # Python tries again, and says so
        block()
        raise


def _leave(*_: object) -> None:
    """Before and after a command: nothing is under way, and an exception would come out of whatever Python is just importing."""
    try:
        os.write(2, b"ckptdiff: interrupted\n")
    finally:  # stderr may be closed
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
