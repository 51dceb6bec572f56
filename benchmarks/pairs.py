"""Make and apply a patch for every pair of checkpoints, with each codec, and print a table.

    python benchmarks/pairs.py [--base FOLDER] [TARGET ...]

The default is the real pairs in ../shared/data, beside a checkout on the project's machines. Sizes are of all files of
the target and of the patch. Every rebuilt file is compared with the target by SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import ckptdiff

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", type=Path, nargs="*")
    parser.add_argument("--base", type=Path, default=DATA / "tiny6m-base")
    arguments = parser.parse_args()
    targets = arguments.targets or sorted(path for path in DATA.iterdir() if path.is_dir() and path != arguments.base)
    print("| target | codec | elements changed | target bytes | patch bytes | ratio | same SHA-256 |\n|---|---|---|---|---|---|---|")
    for target in targets:
        for codec in ("context", "sparse", "raw"):
            with tempfile.TemporaryDirectory() as folder:
                patch, out = Path(folder, "patch"), Path(folder, "out")
                result = ckptdiff.make(arguments.base, target, patch, codec=codec)
                ckptdiff.apply(arguments.base, patch, out)
                wanted, found = hashes(target), hashes(out)
                same = sum(found.get(name) == sha256 for name, sha256 in wanted.items())
                share = 100 * result.totals.changed / result.totals.units
                sizes = f"{result.target_size:,} | {result.patch_size:,} | {result.ratio:.1f}"
                print(f"| {target.name} | {codec} | {share:.2f} % | {sizes} | {same} of {len(wanted | found)} files |")


if __name__ == "__main__":
    main()
