# SPDX-License-Identifier: Apache-2.0
"""Run a reader on all vectors: python run.py [-v] [COMMAND...] (default: the minimal reader beside this folder).

COMMAND is called as ``COMMAND BASE PATCH [PATCH...] OUT``. It exits with 0, or prints ``kind: message`` on stderr and
exits with another status. Without COMMAND the minimal reader is imported, which is faster.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


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
    return fields["expect"], fields["comment"], parts, outputs


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
        done = subprocess.run([*command, *map(str, inputs), str(out)], capture_output=True, text=True)
        kind, _, message = (done.stderr.strip().split("\n") or [""])[-1].partition(": ")
        return ("success", "") if done.returncode == 0 else (kind, message)
    return run


def check(path, reader):
    """(the reader's kind, its message, what is wrong or None)"""
    expect, _, parts, outputs = parse(path)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs, out = unpack(parts, folder), folder / "out"
        before = sorted(folder.iterdir())
        kind, message = reader(inputs, out)
        if kind != expect:
            return kind, message, f"expected {expect}, got {kind}"
        files = [out] if out.is_file() else sorted(p for p in out.rglob("*") if p.is_file())
        found = {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        left = [p for p in sorted(folder.iterdir()) if p not in before and (p != out or kind != "success")]
        wrong = "the output differs" if found != outputs else f"{left[0].name} is left" if left else None
        return kind, message, wrong


def main():
    arguments = sys.argv[1:]
    verbose = "-v" in arguments[:1]
    command = arguments[verbose:]
    reader = with_command(command) if command else with_minimal_reader
    counts, failures = {}, 0
    for path in sorted(HERE.glob("*.vector")):
        kind, message, wrong = check(path, reader)
        counts[kind] = counts.get(kind, 0) + 1
        failures += wrong is not None
        if wrong or verbose:
            print(f"{'FAIL' if wrong else 'ok'} {path.stem}: {wrong or kind}: {message}")
    print(f"{sum(counts.values())} vectors, {failures} failures; {counts}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
