# SPDX-License-Identifier: Apache-2.0
"""Builds the vectors of ckptdiff chains version 1: python build.py [DIR].

Independent of every reader and writer: the standard library and xxhash only. Each call of ``vector`` below is one file.
"""

import json
import sys
from pathlib import Path

import xxhash

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
BASE = "b" * 32
OTHER = "0" * 32


def canonical(value):
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def sealed(value):
    return canonical({**value, "digest": xxhash.xxh3_128_hexdigest(canonical(value))})


def chain(**changes):
    value = {"format": "ckptdiff-chain", "version": 1, "base": {"identity": BASE, "step": None}, "info": {},
             "policy": {"codec": None, "keyframe_every": 3}}
    return {"chain.json": sealed({**value, **changes})}


def head(step, base=BASE):
    return {"HEAD.json": sealed({"format": "ckptdiff-chain-head", "version": 1, "base": {"identity": base}, "info": {},
                                 "step": step, "epoch": 1, "identity": f"{step:032}"})}


def epochs(*numbers):
    return {f"epochs/{n:06}.json": sealed({"format": "ckptdiff-chain-epoch", "version": 1, "base": {"identity": BASE}, "info": {},
                                           "epoch": n, "publisher": f"{n:032}"}) for n in numbers}


def target(step, run=0):
    """The first digits of the identity of a step, of one of several runs."""
    return f"{run}{step:07}"


def name(step, parent=None, epoch=1, base=None, to=None):
    start = "base" if parent is None else f"{parent:012}"
    return f"{step:012}-{start}-{base or (BASE[:8] if parent is None else target(parent))}-{to or target(step)}-{epoch:06}"


def patch(key, whole=True):
    objects = {f"{key}/patch/model.safetensors": b""}
    return {**objects, f"{key}/ckptdiff.json": b""} if whole else objects


def step(number, parent=None, whole=True, **more):
    return patch("steps/" + name(number, parent, **more), whole)


def keyframe(number, whole=True, **more):
    return patch("keyframes/" + name(number, **more), whole)


def vector(title, comment, *objects, expect="success", history=(), **lists):
    parts = {key: data for some in objects for key, data in some.items()}
    lines = [f"expect: {expect}", f"comment: {comment}"]
    if expect == "success":
        lines.append("history: " + " ".join(map(str, history)))
        for kind in ("torn", "superseded", "foreign"):
            lines += [f"{kind}: {key}" for key in lists.get(kind, ())]
        for number, plan in lists.get("plans", {}).items():
            lines.append(f"plan: {number} " + (" ".join(plan) if plan else "none"))
    lines += [f"part: {key} {len(parts[key])}" for key in sorted(parts)]
    text = "\n".join(lines).replace("history: \n", "history:\n")
    (OUT / f"{title}.vector").write_bytes(text.encode() + b"\n\n" + b"".join(parts[key] for key in sorted(parts)))


def s(number, parent=None, **more):
    return "steps/" + name(number, parent, **more)


def k(number, **more):
    return "keyframes/" + name(number, **more)


ONE = [chain(), epochs(1), step(100), step(200, 100)]

# ---- sections 2 and 4: what counts ----------------------------------------------------------------------------------

vector("ok_two_steps", "A chain of two steps.", *ONE, head(200), history=(100, 200),
       plans={100: [s(100)], 200: [s(100), s(200, 100)]})
vector("ok_empty", "A chain without steps.", chain(), history=())
vector("ok_patch_files", "Steps that are patch files.", chain(), epochs(1), {s(100) + ".safetensors": b"x", s(200, 100) + ".safetensors": b"y"},
       history=(100, 200), plans={200: [s(100) + ".safetensors", s(200, 100) + ".safetensors"]})
vector("ok_keyframe", "The nearest keyframe up to a step is taken.", *ONE, keyframe(200), step(300, 200), history=(100, 200, 300),
       plans={100: [s(100)], 200: [k(200)], 300: [k(200), s(300, 200)]})
vector("ok_pruned", "Steps before a keyframe were removed.", chain(), epochs(3), keyframe(200), step(300, 200), history=(200, 300),
       plans={200: [k(200)], 300: [k(200), s(300, 200)]})
vector("ok_unchanged_step", "Two steps in a row are the same checkpoint.", chain(), epochs(1), step(100), step(200, 100, to=target(100)),
       step(300, 200, base=target(100)), history=(100, 200, 300),
       plans={300: [s(100), s(200, 100, to=target(100)), s(300, 200, base=target(100))]})
vector("ok_head_behind", "HEAD.json is a hint: the last step is the one that is listed.", *ONE, head(100), history=(100, 200))
vector("ok_head_of_another_chain", "Who lists a chain needs no HEAD.json.", *ONE, head(200, OTHER), history=(100, 200))
vector("ok_torn_step", "A step without its index is not there.", *ONE, step(300, 200, whole=False), history=(100, 200), torn=[s(300, 200)])
vector("ok_torn_keyframe", "A keyframe without its index is not there.", *ONE, keyframe(200, whole=False), history=(100, 200), torn=[k(200)],
       plans={200: [s(100), s(200, 100)]})
vector("ok_step_torn_and_written_again", "A killed publisher left a torn step; the next one wrote it.", *ONE, epochs(2),
       step(300, 200, whole=False), step(300, 200, epoch=2), history=(100, 200, 300), torn=[s(300, 200)],
       plans={300: [s(100), s(200, 100), s(300, 200, epoch=2)]})
vector("ok_late_step_of_a_publisher_that_was_shut_out", "Epoch 2 went on from 100; what epoch 1 wrote after that does not count.",
       chain(), epochs(1, 2), step(100), step(300, 100, epoch=2), step(200, 100, to=target(200, 9)), step(400, 300, to=target(400, 9)),
       history=(100, 300), superseded=[s(200, 100, to=target(200, 9)), s(400, 300, to=target(400, 9))])
vector("ok_late_keyframe_of_a_publisher_that_was_shut_out", "So with its keyframe.", chain(), epochs(1, 2), step(100),
       step(300, 100, epoch=2), keyframe(200, to=target(200, 9)), history=(100, 300), superseded=[k(200, to=target(200, 9))])
vector("ok_same_step_of_two_epochs", "Two publishers wrote one step; the later one counts.", *ONE, epochs(2),
       step(300, 200, to=target(300, 9)), step(300, 200, epoch=2), history=(100, 200, 300), superseded=[s(300, 200, to=target(300, 9))])
vector("ok_chain_begun_anew_by_a_later_epoch", "The later publisher had not seen the first step.", chain(), epochs(1, 2), step(100),
       step(200, None, epoch=2), history=(200,), superseded=[s(100)], plans={200: [s(200, None, epoch=2)]})
vector("ok_gap", "Step 200 is missing: 300 is out of reach, and so is what follows.", chain(), epochs(1), step(100), step(300, 200),
       step(400, 300), history=(100, 300, 400), plans={100: [s(100)], 300: [], 400: []})
vector("ok_gap_before_keyframe", "A keyframe beyond a gap is in reach.", chain(), epochs(1), step(100), step(300, 200), keyframe(300),
       step(400, 300), history=(100, 300, 400), plans={300: [k(300)], 400: [k(300), s(400, 300)]})
vector("ok_foreign_objects", "Objects of other names are left out.", *ONE,
       {"notes.txt": b"", "steps/README.md": b"", "steps/100/ckptdiff.json": b"", "keyframes/000000000100/ckptdiff.json": b"",
        "epochs/2.json": b"", "epochs/000000.json": b""}, history=(100, 200),
       foreign=["epochs/000000.json", "epochs/2.json", "keyframes/000000000100/ckptdiff.json", "notes.txt", "steps/100/ckptdiff.json",
                "steps/README.md"])
vector("ok_patch_of_another_base", "A patch from a base that is not the chain's is foreign.", *ONE, step(50, None, base="12345678"),
       history=(100, 200), foreign=[key for key in sorted(step(50, None, base="12345678"))])
vector("ok_keyframe_from_a_step", "A keyframe starts from the base, or is foreign.", *ONE, patch("keyframes/" + name(200, 100)),
       history=(100, 200), foreign=sorted(patch("keyframes/" + name(200, 100))))
vector("ok_reordered_name", "A step that would start from a later one, or itself, is foreign.", *ONE, step(50, 100), step(60, 60),
       history=(100, 200), foreign=sorted({**step(50, 100), **step(60, 60)}))
vector("ok_epoch_that_nobody_took", "A patch of an epoch above the highest one is foreign.", *ONE, step(300, 200, epoch=2),
       history=(100, 200), foreign=sorted(step(300, 200, epoch=2)))
vector("ok_epoch_zero", "There is no epoch 0.", *ONE, step(300, 200, epoch=0), history=(100, 200), foreign=sorted(step(300, 200, epoch=0)))
vector("ok_short_and_upper_names", "Names have their digits, in lower case.", *ONE,
       {key.replace("000000000300", "00000000300"): b"" for key in step(300, 200)},
       {f"steps/{name(400, 200, to='ABCDEF00')}/ckptdiff.json": b""}, history=(100, 200),
       foreign=sorted([key.replace("000000000300", "00000000300") for key in step(300, 200)]
                      + [f"steps/{name(400, 200, to='ABCDEF00')}/ckptdiff.json"]))
vector("ok_file_that_should_be_a_folder", "A patch folder's name on an object, or a patch file's on a folder, is foreign.", *ONE,
       {s(300, 200): b"", s(400, 200) + ".safetensors/ckptdiff.json": b""}, history=(100, 200),
       foreign=[s(300, 200), s(400, 200) + ".safetensors/ckptdiff.json"])

# ---- section 4: forks -----------------------------------------------------------------------------------------------

vector("fork_of_one_parent", "Two steps of one epoch start from step 100.", *ONE, step(300, 100), expect="format")
vector("fork_from_the_base", "Two steps of one epoch start from the base.", *ONE, step(300), expect="format")
vector("fork_of_one_step", "One step has two targets.", *ONE, step(200, 100, to=target(200, 9)), expect="format")
vector("fork_of_one_step_and_keyframe", "A step and its keyframe have different targets.", *ONE, keyframe(200, to=target(200, 9)),
       expect="format")
vector("fork_of_two_patches_of_one_step", "Two patches lead to one step.", chain(), epochs(1), step(100), step(150, 100), step(200, 150),
       step(200, 100), expect="format")
vector("step_of_another_parent", "The identity of the parent is not what the step before gives.", chain(), epochs(1), step(100),
       step(200, 100, base="99999999"), expect="format")
vector("step_below_that_of_the_base", "The base is step 100 itself.", chain(base={"identity": BASE, "step": 100}), epochs(1), step(100),
       expect="format")

# ---- section 3: chain.json ------------------------------------------------------------------------------------------

vector("chain_missing", "Without chain.json it is no chain.", epochs(1), step(100), expect="format")
vector("chain_empty", "chain.json is empty.", {"chain.json": b""}, expect="format")
vector("chain_not_canonical", "chain.json has a space.", {"chain.json": chain()["chain.json"].replace(b":", b": ", 1)}, expect="format")
vector("chain_of_another_format", "chain.json is a head.", {"chain.json": head(1)["HEAD.json"]}, expect="format")
vector("chain_version_2", "A later version.", chain(version=2), expect="unsupported")
vector("chain_digest_wrong", "The digest is another.", {"chain.json": chain()["chain.json"].replace(b'"step":null', b'"step":7', 1)},
       expect="integrity")
vector("chain_unknown_member", "A member that is not known.", chain(extra=1), expect="unsupported")
vector("chain_without_policy", "The policy is missing.", {"chain.json": sealed({"format": "ckptdiff-chain", "version": 1, "info": {},
                                                                                "base": {"identity": BASE, "step": None}})}, expect="format")
vector("chain_keyframe_every_0", "keyframe_every is at least 1.", chain(policy={"codec": None, "keyframe_every": 0}), expect="format")
vector("chain_keyframe_every_65", "keyframe_every is at most 64.", chain(policy={"codec": None, "keyframe_every": 65}), expect="format")
vector("chain_unknown_codec", "A codec that is not known.", chain(policy={"codec": "magic", "keyframe_every": 3}), expect="unsupported")
vector("chain_identity_short", "An identity has 32 digits.", chain(base={"identity": "b" * 31, "step": None}), expect="format")
vector("chain_base_without_step", "base.step is missing.", chain(base={"identity": BASE}), expect="format")
vector("chain_step_too_large", "A step has 12 digits.", chain(base={"identity": BASE, "step": 10**12}), expect="format")
