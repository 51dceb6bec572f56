"""Where the command line begins: from here on a signal ends it with one line, also while all the rest is still imported."""

import os


def main() -> None:
    """Run the command line, as ``ckptdiff`` and ``python -m ckptdiff`` do."""
    try:
        from ckptdiff.interrupts import install

        install(_leave)
    except KeyboardInterrupt:
        _leave()
    from ckptdiff.cli import main as run

    run()


def _leave(*_: object) -> None:
    """Before and after a command: nothing is under way, and an exception would come out of whatever Python is just importing."""
    try:
        os.write(2, b"ckptdiff: interrupted\n")
    finally:  # stderr may be closed
        os._exit(130)


if __name__ == "__main__":
    main()
