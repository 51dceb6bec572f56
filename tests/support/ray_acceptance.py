"""Acceptance of ``--ray`` with the real Ray, by hand, in an environment that has it.

    python -m tests.support.ray_acceptance FOLDER PART...

Parts: ``real`` (the pairs of ../shared/data), ``sharded`` (``--mb`` in ``--shards``), ``many`` (``--tensors`` tiny ones), ``kills`` (of a
worker), ``failures`` (a task that fails twice, and one that always does), ``interrupts`` (Ctrl-C, SIGTERM; the command killed twice, and
run again) and ``nodes`` (two nodes of Ray in two network namespaces, for which it must be root; then one of them killed). Each prints a
line a check, with seconds beside those of one process; a check that fails ends the run. Pairs in FOLDER are kept for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.checkpoints import SHARED_DATA
from tests.support.kills import default_signals
from tests.support.real_pairs import BASE, TARGETS
from tests.support.unit_logs import logged, spans, unit_log_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
HOOK = Path(__file__).with_name("fault_hook")
PROGRAM = [sys.executable, "-m", "ckptdiff"]
ADDRESS, OTHER, PORT = "10.99.7.1", "10.99.7.2", 6399
OPEN = {"RAY_AUTH_MODE": "disabled"}
"""For a cluster that nothing else can reach."""
SPACES = ("ckptdiff-a", "ckptdiff-b")


def say(*words: object) -> None:
    print(*words, flush=True)


def check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    say("  ok:", what)


def run(*arguments: object, inside: str | None = None, environment: dict[str, str] | None = None, code: int = 0) -> tuple[float, str]:
    """Run a command of ckptdiff; seconds, and what it said."""
    start = time.monotonic()
    command = [*(["ip", "netns", "exec", inside] if inside else []), *PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != code:
        raise SystemExit(f"FAILED: {command} ended with {done.returncode}: {done.stderr[-3000:]}")
    return time.monotonic() - start, done.stdout + done.stderr


def same(name: str, base: Path, target: Path, work: Path, ray: list[str], inside: str | None = None) -> None:
    """Make, apply and verify, by threads and by Ray."""
    alone, patch, out = work / f"{name}-alone", work / f"{name}-patch", work / f"{name}-out"
    for path in (alone, patch, out):
        shutil.rmtree(path, ignore_errors=True)
    one, _ = run("make", base, target, "-o", alone, "--threads", 2)
    two, _ = run("make", base, target, "-o", patch, *ray, inside=inside)
    check(equal(alone, patch), f"{name}: make gives the same patch ({one:.1f} s by two threads, {two:.1f} s by Ray with its start)")
    two, _ = run("apply", base, patch, "-o", out, *ray, inside=inside)
    one, _ = run("verify", patch, "--target", out)
    check(True, f"{name}: apply gives the target's files by their SHA-256 ({two:.1f} s)")
    three, text = run("verify", patch, "--base", base, "--target", out, *ray, "--json", inside=inside)
    found = json.loads(text[text.index("{") :].splitlines()[0])
    check(found["ok"], f"{name}: verify finds no problem in {found['checked']:,} checks ({three:.1f} s)")
    shutil.rmtree(alone)
    shutil.rmtree(out)


def equal(a: Path, b: Path) -> bool:
    return subprocess.run(["diff", "-rq", a, b]).returncode == 0


# --- pairs ---


def sharded(folder: Path, mb: int, shards: int) -> tuple[Path, Path]:
    """A made pair in shards with an index; every shard has weights and names of its own."""
    from made_pairs import Recipe, write

    for k in range(shards):
        name = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        if not (folder / "target" / name).exists():
            write(folder / "part", Recipe(mb / shards, 12.0, "BF16", k))
            for side in ("base", "target"):
                rename(folder / "part" / f"{side}.safetensors", folder / side / name, f"part{k}.")
            shutil.rmtree(folder / "part")
    for index in (folder / side / "model.safetensors.index.json" for side in ("base", "target")):
        names: dict[str, str] = {}
        for path in sorted(index.parent.glob("*.safetensors")):
            with open(path, "rb") as file:
                entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            names |= {name: path.name for name in entries if name != "__metadata__"}
        if not index.exists():
            index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder / "base", folder / "target"


def rename(source: Path, to: Path, prefix: str) -> None:
    """Copy a safetensors file, with a prefix before the names of its tensors."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as file, open(to.with_suffix(".part"), "wb") as out:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        text = json.dumps({(name if name == "__metadata__" else prefix + name): entry for name, entry in entries.items()}).encode()
        text += b" " * (-len(text) % 8)
        out.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(file, out, 1 << 22)
    os.replace(to.with_suffix(".part"), to)


def many(folder: Path, count: int) -> tuple[Path, Path]:
    from many_tensors import pair, write

    if not (folder / "target").exists():
        for name, tensors in zip(("base", "target"), pair(count, 8), strict=True):
            write(folder / name, tensors, 163)
    return folder / "base", folder / "target"


@contextmanager
def cluster() -> Iterator[list[str]]:
    """A Ray of two workers on this machine, for several commands; options that lead to it."""
    folder = tempfile.mkdtemp(prefix="ckptdiff-test-ray-")
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={PORT}",
        "--num-cpus=2",
    ]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}", "--object-store-memory=500000000"]
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on 127.0.0.1 alone, and the commands look for it there
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **OPEN})
        yield ["--ray", f"127.0.0.1:{PORT}"]
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for row in subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines():
                if folder in row:
                    os.kill(int(row.split()[0]), number)
            time.sleep(3)
        shutil.rmtree(folder, ignore_errors=True)


# --- faults ---


def busy_workers(command: int) -> list[int]:
    """Processes of Ray that do a task, below a command."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [(int(row.split()[0]), int(row.split()[1]), row.split(None, 2)[2]) for row in found]
    below, more = {command}, True
    while more:
        more = any(parent in below and pid not in below and not below.add(pid) for pid, parent, _ in rows)  # type: ignore[func-returns-value]
    return [pid for pid, _, title in rows if pid in below and title.startswith("ray::do_batch")]


def disturbed(arguments: list[object], disturb: Callable[[subprocess.Popen[str], int], None]) -> tuple[int, str]:
    """Run a command of ckptdiff, and disturb it once a worker of its own has worked for a moment; exit code and stderr."""
    words = [*PROGRAM, *map(str, arguments)]
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals)
    while command.poll() is None:
        workers = busy_workers(command.pid)
        if workers:
            time.sleep(1.0)
            disturb(command, workers[0])
            break
        time.sleep(0.2)
    else:
        raise SystemExit(f"FAILED: {arguments} was done before it could be disturbed")
    _, errors = command.communicate(timeout=900)
    return command.returncode, errors


def kill_worker(command: subprocess.Popen[str], worker: int) -> None:
    os.kill(worker, signal.SIGKILL)


LOCAL = ["--threads", 2, "--ray"]


def alone(base: Path, target: Path, work: Path) -> Path:
    """The patch that threads make, and no other output."""
    patch = work / "alone"
    for path in work.iterdir():
        if path != patch:
            shutil.rmtree(path)
    if not patch.exists():
        run("make", base, target, "-o", patch)
    return patch


def kills(base: Path, target: Path, work: Path) -> None:
    expected, patch, out = alone(base, target, work), work / "patch", work / "out"
    code, errors = disturbed(["make", base, target, "-o", patch, *LOCAL], kill_worker)
    check(code == 0 and equal(expected, patch), f"make with a worker killed: done, the same {errors}")
    code, errors = disturbed(["apply", base, patch, "-o", out, *LOCAL], kill_worker)
    check(code == 0 and equal(target, out), f"apply with a worker killed: done, the same {errors}")


def failures(base: Path, target: Path, work: Path) -> None:
    expected, patch, out, hook = alone(base, target, work), work / "patch", work / "out", work / "hook"
    environment = {"PYTHONPATH": f"{HOOK}:{os.environ.get('PYTHONPATH', '')}", "CKPTDIFF_TEST_FAULTS": f"{hook}:2"}
    for verb, arguments in (("make", (base, target, "-o", patch)), ("apply", (base, expected, "-o", out))):
        shutil.rmtree(hook, ignore_errors=True)
        hook.mkdir()
        run(verb, *arguments, *LOCAL, environment=environment)
        came = sorted(os.listdir(hook))
        given, wanted = (patch, expected) if verb == "make" else (out, target)
        check(came == ["fault-0", "fault-1"] and equal(given, wanted), f"{verb} with {came}: the same")
    shutil.rmtree(patch)
    environment["CKPTDIFF_TEST_FAULTS"] = f"{hook}:9999"
    _, text = run("make", base, target, "-o", patch, *LOCAL, environment=environment, code=3)
    check("a fault of the test" in text and ": tensor " in text and "on worker" in text, f"a task that always fails: {text.strip()}")
    check(not left(work, "alone", "hook", "out"), "nothing is left")


def interrupts(base: Path, target: Path, work: Path) -> None:
    expected, patch, out = alone(base, target, work), work / "patch", work / "out"
    for number, name in ((signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")):
        code, errors = disturbed(["make", base, target, "-o", patch, *LOCAL], lambda command, _, number=number: command.send_signal(number))  # type: ignore[misc]
        check(code == 130, f"{name}: exit {code}: {errors.strip()}")
        kept = [path.name for path in work.glob(".patch.ckptdiff-*")]
        check(bool(kept) == ("finished and kept" in errors), f"{name}: kept to go on with: {kept}")
        check(not left(work, "alone", *kept), f"{name}: no process, no folder of Ray and nothing else beside the output is left")
    go_on_after_kills(["make", base, target, "-o", patch, *LOCAL], patch, expected)
    go_on_after_kills(["apply", base, expected, "-o", out, *LOCAL], out, target)


def go_on_after_kills(arguments: list[object], out: Path, expected: Path) -> None:
    """Kill a command twice, each time once it has finished more units, and let it end: finished units are not begun again."""
    name, known, size = str(arguments[0]), set[int](), 0
    for number in (1, 2):
        command = subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while command.poll() is None and len(logged(out, "done") - known) < UNITS_BEFORE_KILL:
            time.sleep(0.1)
        command.kill()
        command.communicate()
        deadline = time.monotonic() + 30
        while of_ray() and time.monotonic() < deadline:
            time.sleep(0.5)
        check(command.returncode == -9 and not out.exists() and not of_ray(), f"{name}: command killed ({number}): no output, its Ray ends")
        begun, done = logged(out, "begin", size), logged(out, "done")
        again = begun & known
        check(known <= done and not again, f"{name}: units finished {spans(done)}, begun by this run {spans(begun)}, both {spans(again)}")
        known, size = done, unit_log_of(out).stat().st_size
    _, said = run(*arguments)
    check("going on after" in said, f"{name} again: {[line for line in said.splitlines() if 'going on' in line]}")
    left = {path.name for path in out.parent.iterdir()} - {"alone", "patch", "out"}
    check(equal(expected, out) and not left, f"{name}: done, the same, and nothing else is left")


UNITS_BEFORE_KILL = 5


DISTURBED = {"kills": kills, "failures": failures, "interrupts": interrupts}


def of_ray() -> list[str]:
    """Processes of a Ray that a command has started."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
    return [row for row in found if "/tmp/ckptdiff-ray-" in row]


def left(work: Path, *expected: str) -> list[str]:
    """What is there of Ray, and in a folder, beside what is expected there."""
    time.sleep(2)
    folders = [name for name in os.listdir("/tmp") if name.startswith("ckptdiff-ray-")]
    return [*of_ray(), *folders, *({*os.listdir(work)} - {*expected})]


# --- nodes ---


@contextmanager
def namespaces() -> Iterator[None]:
    """Two network namespaces, with a link between them."""
    commands = [f"netns add {name}" for name in SPACES]
    commands.append(f"link add ckpt0 netns {SPACES[0]} type veth peer name ckpt1 netns {SPACES[1]}")
    for name, device, address in zip(SPACES, ("ckpt0", "ckpt1"), (ADDRESS, OTHER), strict=True):
        commands += [f"-n {name} addr add {address}/24 dev {device}", f"-n {name} link set {device} up", f"-n {name} link set lo up"]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)
        yield
    finally:
        for name in SPACES:
            stop(name)
            subprocess.run(["ip", "netns", "del", name])


def stop(space: str) -> None:
    """Kill what runs in a namespace of ours."""
    found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
    for pid in found:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass


def is_busy(space: str) -> bool:
    """Whether a worker in a namespace does a task."""
    pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
    found = subprocess.run(["ps", "-o", "args", "-p", ",".join(pids) or "0"], capture_output=True, text=True).stdout
    return "ray::do_batch" in found


def start_node(space: str, address: str, folder: str) -> None:
    head = space == SPACES[0]
    options = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"] if head else [f"--address={ADDRESS}:{PORT}"]
    options += [f"--node-ip-address={address}", "--num-cpus=1", "--disable-usage-stats", "--object-store-memory=500000000"]
    command = [Path(sys.executable).with_name("ray"), "start", *options]
    for _ in range(4):  # Ray waits half a minute for its own processes, which is little on a busy machine
        if not subprocess.run(
            ["ip", "netns", "exec", space, *map(str, command)], capture_output=True, env={**os.environ, **OPEN}
        ).returncode:
            return
        stop(space)
    raise SystemExit(f"FAILED: Ray does not start in {space}")


def nodes(data: Path, pair: tuple[Path, Path], tiny: tuple[Path, Path], work: Path) -> None:
    base, target = pair
    folder = "/tmp/ckptdiff-test-ray-nodes"
    with namespaces():
        try:
            start_node(SPACES[0], ADDRESS, folder)
            start_node(SPACES[1], OTHER, folder)
            ray = ["--ray", f"{ADDRESS}:{PORT}"]
            same("two nodes, many", *tiny, work, ray, inside=SPACES[0])
            same("two nodes, sharded", base, target, work, ray, inside=SPACES[0])
            for name in TARGETS:
                same(f"two nodes, {name}", data / BASE.name, data / name, work, ray, inside=SPACES[0])
            patch, out = work / "two nodes, sharded-patch", work / "out"
            shutil.rmtree(out, ignore_errors=True)
            command = subprocess.Popen(
                ["ip", "netns", "exec", SPACES[0], *PROGRAM, *map(str, ("apply", base, patch, "-o", out, *ray))],
                stderr=subprocess.PIPE,
                text=True,
            )
            while not is_busy(SPACES[1]) and command.poll() is None:
                time.sleep(0.2)
            running = command.poll() is None
            stop(SPACES[1])
            _, errors = command.communicate(timeout=900)
            done = running and command.returncode == 0 and equal(target, out)
            check(done, f"a node killed in the middle of apply: done, the same {errors}")
        finally:
            for space in SPACES:
                stop(space)
            time.sleep(1)
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="+", choices=["real", "sharded", "many", *DISTURBED, "nodes", "pair"])
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="folder of the real pairs")
    parser.add_argument("--mb", type=int, default=4000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--tensors", type=int, default=90_427)
    found = parser.parse_args()
    work = found.folder / f"work-{found.parts[0]}"
    work.mkdir(parents=True, exist_ok=True)
    for part in found.parts:
        say(f"{part}:")
        if part == "real":
            with cluster() as ray:
                for name in TARGETS:
                    same(name, found.data / BASE.name, found.data / name, work, ray)
            continue
        if part == "many":
            with cluster() as ray:
                same("many", *many(found.folder / "many", found.tensors), work, ray)
            continue
        pair = sharded(found.folder / f"sharded-{found.mb}", found.mb, found.shards)
        if part == "sharded":
            with cluster() as ray:
                same("sharded", *pair, work, ray)
        elif part in DISTURBED:
            DISTURBED[part](*pair, work)
        elif part == "nodes":
            nodes(found.data, pair, many(found.folder / "many", found.tensors), work)


if __name__ == "__main__":
    main()
