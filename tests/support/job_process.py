"""One job of a plan in a process of its own, which opens the checkpoints by their paths: ``python -m tests.support.job_process``.

What to do is pickled on its standard input, what the job gave on its standard output.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.io.parallel import Threads, sha256_file
from ckptdiff.patching.build import RangeBuilder
from ckptdiff.patching.encode import GroupEncoder
from ckptdiff.patching.encode_plan import FileHashJob, HashJob
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.rebuild import Rebuilder, open_base
from ckptdiff.patching.target_files import FileSink, outputs_of


def encode(base: Path, target: Path, job: Any) -> Any:
    with open_checkpoint(base) as old, open_checkpoint(target) as new:
        if isinstance(job, FileHashJob):
            return sha256_file((old if job.of_base else new).weights[job.file].file)
        encoder = GroupEncoder(old, new)
        return encoder.leaf(job) if isinstance(job, HashJob) else encoder(job)


def rebuild(base: Path, patch: Path, out: Path, job: Any) -> Any:
    with open_patch(patch) as opened, open_base(base, [opened]) as old:
        outputs = outputs_of(Rebuilder(old, [opened], Threads(1)))
        sink = FileSink([(out / output.path, offset) for output in outputs for offset, _ in output.tensors])
        try:
            return RangeBuilder([recipe for output in outputs for _, recipe in output.tensors], sink)(job)
        finally:
            sink.close()


if __name__ == "__main__":
    name, arguments = pickle.load(sys.stdin.buffer)
    pickle.dump({"encode": encode, "rebuild": rebuild}[name](*arguments), sys.stdout.buffer)
