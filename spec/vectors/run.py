# SPDX-License-Identifier: Apache-2.0
"""Run a reader on all vectors, and count what passes by section of the specification.

    python run.py [-v] [-k PREFIX] [--every N] [READER...]

READER is a command. It is called as ``READER apply BASE PATCH [PATCH...] OUT``, as ``../README.md`` says. Without READER it
is the minimal reader, which is imported: that is faster. ``-v`` says how each vector ends, ``-k`` takes those whose names
begin so (with or without ``ok_``), ``--every`` each N-th of them. The exit code is 0 if all pass, 1 if one does not.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


# The section that a vector is about, by how its name begins without ok_; the longest beginning counts.
SECTIONS = {
    "2": "varint zstd", "3.1": "scope index base_scope base_doubled recorded all_scope ending", "3.3": "base base_is_a_ base_holds_a_ base_scope_without base_scope_of_empty", "5": "container",
    "5.1": "metadata tensors_in_memory base_files", "5.2": "header strange_header", "5.3": "base_header", "5.4": "report folder_report",
    "6": "table copy nothing rename empty names shapes scope_null", "6.1": "pieces table_piece folder_pieces table_cast",
    "7.1": "plane", "7": "blocks", "7.3": "raw", "7.4": "sparse dtypes", "7.5": "context", "7.5.2": "context_adaptive context_dense_adaptive",
    "7.5.3": "context_static context_dense_static", "8": "cast bits_as_they_are resize same_cut", "9": "folder path patch_folder folder_base_path folder_base_files",
    "10": "chain result all_kinds patch_file file_patch scope_of_another base_lacks base_is base_other base_holds base_has base_piece base_one base_shorter base_longer "
          "base_of_other base_truncated base_extended base_digest folder_base",
    "12": "version unknown", "13": "faults folder_faults"}


def section_of(name):
    name = name[3:] if name.startswith("ok_") else name
    found = [(len(word), section) for section, words in SECTIONS.items() for word in words.split() if name.startswith(word)]
    return max(found)[1] if found else "other"


def generated(seed, count, carrier, first, shift, step, sign):
    """Units that a vector does not hold, but says how to make (README.md)."""
    s, out = seed, bytearray()
    for _ in range(count):
        s = (s * 6364136223846793005 + 1442695040888963407) % 2 ** 64
        p = (s >> 48) * (s >> 32 & 65535) >> 16
        unit = first + (p >> shift) * step + (s >> 31 & 1) * sign
        out += (unit % 256 ** carrier).to_bytes(carrier, "little")
    return bytes(out)


def parse(path):
    """A vector's fields: expect, comment, parts (path -> bytes), outputs (path -> SHA-256)."""
    raw = path.read_bytes()
    head, body = raw.split(b"\n\n", 1)
    fields, parts, outputs = {}, {}, {}
    for line in head.decode().split("\n"):
        key, value = line.split(": ", 1)
        if key == "part":
            name, size = value.rsplit(" ", 1)
            parts[name], body = body[:int(size)], body[int(size):]
        elif key == "units":
            name, *numbers = value.split(" ")
            parts[name] += generated(*map(int, numbers))
        elif key == "output":
            name, digest = value.rsplit(" ", 1)
            outputs[name] = digest
        else:
            fields[key] = value
    assert not body, f"{path}: bytes after the last part"
    return fields["expect"].split(" "), fields["comment"], parts, outputs


def unpack(parts, folder):
    """Write the parts; the paths of the base and of the patches in order."""
    inputs = []
    for name, data in parts.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        first = folder / name.split("/")[0]
        if first not in inputs:
            inputs.append(first)
    return inputs


def with_minimal_reader(inputs, out):
    sys.path.insert(0, str(HERE.parent))
    import minimal_reader
    try:
        minimal_reader.apply(str(inputs[0]), [str(p) for p in inputs[1:]], str(out))
        return "success", ""
    except minimal_reader.PatchError as error:
        return error.kind, error.message
    except Exception as error:  # no reader may end like this
        return "crash", repr(error)


def with_command(command):
    def run(inputs, out):
        done = subprocess.run([*command, "apply", *map(str, inputs), str(out)], capture_output=True)
        if done.returncode == 0:
            return "success", ""
        line = (done.stderr.decode("utf-8", "replace").rstrip().split("\n") or [""])[-1]
        kind = re.match("[a-z_]*", line)[0]
        return kind if kind in KINDS else "crash", line
    return run


KINDS = ("format", "unsupported", "integrity", "wrong_base", "already_target", "checkpoint")


def check(path, reader):
    """(the reader's kind, its message, what is wrong or None)"""
    expect, _, parts, outputs = parse(path)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs, out = unpack(parts, folder), folder / "out"
        before = sorted(folder.iterdir())
        kind, message = reader(inputs, out)
        if kind not in expect:
            return kind, message, f"expected {' or '.join(expect)}, got {kind}"
        files = [out] if out.is_file() else sorted(p for p in out.rglob("*") if p.is_file())
        found = {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        left = [p for p in sorted(folder.iterdir()) if p not in before and (p != out or kind != "success")]
        wrong = "the output differs" if found != outputs else f"{left[0].name} is left" if left else None
        return kind, message, wrong


def main():
    parser = argparse.ArgumentParser(description="Run a reader on the conformance vectors.")
    parser.add_argument("-v", action="store_true", help="say how each vector ends")
    parser.add_argument("-k", default="", metavar="PREFIX", help="only vectors whose names begin so")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th vector")
    parser.add_argument("reader", nargs=argparse.REMAINDER, metavar="READER", help="the command of a reader")
    options = parser.parse_args()
    reader = with_command(options.reader) if options.reader else with_minimal_reader
    paths = [path for path in sorted(HERE.glob("*.vector")) if path.stem.removeprefix("ok_").startswith(options.k) or path.stem.startswith(options.k)]
    passes, missed = {}, 0
    for path in paths[::options.every]:
        kind, message, wrong = check(path, reader)
        counts = passes.setdefault(section_of(path.stem), [0, 0])
        counts[0] += wrong is None
        counts[1] += 1
        missed += wrong is not None
        if wrong or options.v:
            print(f"{'FAIL' if wrong else 'ok'} {path.stem}: {wrong or kind}: {message}")
    for section, (passed, of) in sorted(passes.items(), key=lambda item: [int(part) if part.isdigit() else 99 for part in item[0].split(".")]):
        print(f"section {section:6} {passed:4} of {of:4} pass")
    total = sum(of for _, of in passes.values())
    print(f"{total - missed} of {total} vectors pass")
    sys.exit(missed > 0 or not total)


if __name__ == "__main__":
    main()
