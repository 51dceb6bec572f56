"""The package as a reader of the kit: ``python -m tests.support.kit_reader apply BASE PATCH [PATCH...] OUT`` (spec/README.md)."""

from __future__ import annotations

import sys

import ckptdiff


def main() -> None:
    _, verb, base, *patches, out = sys.argv
    assert verb == "apply"
    try:
        ckptdiff.apply(base, patches, out, threads=1)
    except ckptdiff.CkptdiffError as error:
        sys.exit(f"{error.kind}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
