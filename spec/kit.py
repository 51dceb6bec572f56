# SPDX-License-Identifier: Apache-2.0
"""Build the kit for implementers: python kit.py OUT. OUT is a tar.gz file, the same bytes each time."""

import gzip
import io
import re
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = ("README.md", "CHANGELOG.md", "ckptdiff-v1.md", "report.schema.json", "minimal_reader.py",
         "vectors/README.md", "vectors/run.py", "vectors/build.py")


def version():
    return re.search(r"Kit version ([0-9.]+[0-9])", (HERE / "README.md").read_text("utf-8"))[1]


def members():
    """The path in the archive and the bytes of each file, in order of path."""
    paths = [*FILES, *(f"vectors/{path.name}" for path in HERE.glob("vectors/*.vector"))]
    found = {path: (HERE / path).read_bytes() for path in paths}
    found["LICENSE"] = (HERE.parent / "LICENSE").read_bytes()
    return sorted(found.items())


def build(out):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, data in members():
            info = tarfile.TarInfo(f"ckptdiff-kit-{version()}/{path}")  # no time, owner or mode of this machine
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with open(out, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as stream:
        stream.write(packed.getvalue())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: kit.py OUT")
    build(sys.argv[1])
