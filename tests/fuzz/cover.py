"""Which lines of the readers the targets reach: python -m tests.fuzz.cover [COUNT] [--corpus DIR]

Kernels run as plain Python. COUNT mutations of each target are run beside its seeds, and beside what a campaign has left in DIR/TARGET.
Functions that only write are left out: WRITERS names them. Needs ``pip install coverage``.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import coverage

from tests.fuzz import plain_kernels

ROOT = Path(__file__).resolve().parents[2]
MODULES = """
format/canonical format/fields format/digests format/dtypes format/json_scan format/metadata format/index format/sealed format/patch_file
format/safe_paths format/safetensors format/zstd_frame format/entry format/table format/columns format/entry_scan format/header_scan
format/tensor_type format/payloads
patching/recipes patching/build patching/build_together patching/other_files patching/patch subnetwork/mask
subnetwork/mask_file subnetwork/mask_rows analysis/report_stored codecs/__init__ codecs/planes codecs/raw codecs/sparse
codecs/escaped_values codecs/context
kernels/adaptive kernels/adaptive_block kernels/adaptive_blocks kernels/changes kernels/classes kernels/escapes kernels/context_groups
kernels/context_map kernels/leaves kernels/moves kernels/pace
kernels/range_coder kernels/rans kernels/raw_bits kernels/static kernels/tokens kernels/ulps
""".split()
WRITERS = r"""
encode _join pack to_json to_bytes digests warm_up seal digest_of write_varint write_plane split write_changes write_planes
put_\w+ encode_\w+ choose_rates _step number_of_step step_bits new_writer for_kernels close_raw carry renormalise finish_range
normalise rounded reciprocals bit_length fill_mean_activity add_scores count_tokens _plans _maps _levels level_bits cost append_bits
count_sample estimated fill_units units_of changes_of compared sized_changes fill_sized fill_changes fill_compared zigzag_between
distance_between move_run\w* move_and_hash move_some move_all leaves_of_\w+ fill_whole_leaves _splat _load _address
_add_stripe _scramble _adder fold fill_lea\w+ start_leaf hash_steps merge_sums finish_leaf count_escapes best_width split_escaped
split_changes compress _checked blocks_of blocks_at places_of_blocks stored_leaves cut_leaves leaves_at compared_\w+ _compared array_at
group_contexts measure_contexts cut_into_runs assign_groups table_cost log2_fixed merge_runs
write_patch_file _pieces encode_target_header check_paths
_compressor _file_digest decoding_error from_patch from_arrays union intersection vote random shared precision recall save write_mask
_changed_bits
_check_counterparts count_shared vote_rows smallest_weights _smallest_bits
__repr__ __hash__ __eq__ total predicted_header base_files info
row_from_bits row_from_positions pack_positions bits __getitem__ __iter__ __len__
stored_size output_size paths report
""".split()
"""Functions that no reader of a patch's bytes calls, as patterns."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.cover")
    parser.add_argument("count", type=int, nargs="?", default=200)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--inputs", type=int, default=300, help="of a target's corpus, at random")
    parser.add_argument("--all", action="store_true", help="writers too")
    options = parser.parse_args()
    files = [f"{ROOT}/ckptdiff/{name}.py" for name in MODULES]
    measured = coverage.Coverage(data_file=None, include=files, messages=False)
    if not options.all:
        for pattern in WRITERS:
            measured.exclude(rf"def {pattern}\(")
    measured.exclude("if TYPE_CHECKING:")
    measured.exclude(r"\.\.\.$")
    measured.start()
    plain_kernels.install()
    _run(options)
    measured.stop()
    measured.report(show_missing=True, skip_empty=True, file=sys.stdout)


def _run(options: argparse.Namespace) -> None:
    from tests.fuzz.containers import run_scenario
    from tests.fuzz.engine import Target, loop
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.vectors import pack, scenarios

    def run(target: Target) -> Any:
        tally = loop(target, 1, options.count)
        found = sorted((options.corpus / target.name).glob("*")) if options.corpus else []
        for path in random.Random(1).sample(found, min(len(found), options.inputs)):
            tally.add(target.run(path.read_bytes()))
        return tally.to_json()

    for _, _, parts in scenarios():
        run_scenario(pack(parts))
    for target in TARGETS.values():
        print(target.name, run(target), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
