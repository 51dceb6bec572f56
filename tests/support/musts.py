"""Every MUST of the spec, and the vectors and tests that hold it: ``python -m tests.support.musts`` lists them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "spec"

HELD = """
Wherever a section says that something MUST hold | test_vectors::test_each_reader_gives_what_the_vector_states
It MUST be shorter than 6 bytes | varint_six_bytes varint_2_to_32 varint_not_minimal
JSON whose canonical form differs | metadata_with_space metadata_keys_unsorted metadata_repeats_key metadata_escaped_letter table_json_with_space
integers MUST lie from | metadata_integer_2_53 metadata_integer_minus_2_53 metadata_nested_65 ok_metadata_at_limits
Each of them MUST be an index (3.1) | index_not_json index_is_a_list index_lists_missing_file index_with_dots
VARIANT that have their scope by rule 2 MUST be complete | base_shard_missing_first base_shard_missing_of_three ok_base_shards_from_0
Each weight file MUST be a safetensors file | base_unused_file_broken base_truncated base_unused_shard_broken
x bits / 8, which MUST be an integer | table_entry_half_a_byte
A reader MUST reject a header that is not exactly this | container_header_with_space container_header_padded_too_much container_keys_in_other_order container_hole
`path` MUST be safe (9) | folder_base_path_unsafe ok_base_recorded_of_other_ending test_crafted::test_both_readers_judge_alike
The list MUST NOT be empty where `target.sha256` is stated | metadata_base_files_empty ok_tensors_in_memory
of the rebuilt file, which MUST be safe | metadata_path_unsafe path_of_target_is_git ok_path_of_target_without_ending
They MUST agree with the table | metadata_totals_units_wrong metadata_totals_removed_wrong metadata_totals_changed_wrong
A reader MUST ignore members of `info` | ok_base_files_and_info ok_folder_info_and_other_files
MUST be the one that follows from the entries | metadata_target_identity_wrong folder_target_identity_wrong folder_identity_of_entry_that_does_not_count
The decoded header MUST be a valid safetensors header | header_other_name header_other_dtype header_other_shape header_hole header_tensor_more header_empty_tensors_in_other_order
8 + N + the tensors' sizes MUST be | metadata_target_size_wrong
MUST check the size and the digest of the stored bytes | report_digest_wrong report_too_large
It MUST NOT be the entry's own, and the pair | table_entry_base_dtype_own table_cast_f64_to_f32
of the one that counts, which MUST be of the same dtype and shape | table_copy_of_other_shape table_copy_of_other_dtype table_copy_of_copy folder_copy_of_copy_in_other_file
MUST be `false`: the entry's name is doubled | table_entry_counts_true table_entry_counts_null table_entry_counts_0
of the entries of one scope with one name exactly one MUST count | folder_two_entries_of_one_name_count folder_no_entry_of_a_name_counts
A patch file that has `base.files` MUST NOT have an entry that does not | table_entry_does_not_count_in_lone_patch_file
It MUST have exactly this length | table_digests_one_byte_short table_digests_one_byte_long
`units` MUST be at least 1 | table_piece_units_0 table_piece_ends_past_2_48 base_piece_at_2_48
An entry's `pieces` MUST have at least one piece with a name | table_pieces_of_zeros_only table_pieces_longer_than_the_entry
A table MUST NOT have more than 2^20 pieces | table_pieces_too_many ok_pieces_at_limit
To keep what can be left out | table_pieces_say_the_default table_pieces_could_be_one table_pieces_zeros_twice table_pieces_end_in_zeros
whose content MUST be exactly L bytes | plane_content_short plane_content_long plane_content_long_no_size plane_bomb
The frame MUST NOT have a checksum, and its window | plane_checksum plane_window_too_large ok_plane_window_of_2_to_21
E + (v - E) MUST be below | sparse_value_overflow sparse_value_overflow_64_bits
Read the planes, interleave. Bytes left over MUST be rejected | raw_left_over_byte
The last MUST be below u | sparse_position_past_end sparse_second_position_past_end sparse_gap_escape_past_end
z - 1 MUST be below 2^m - 1 | sparse_z_overflow sparse_z_overflow_64_bits
the base's unit elsewhere. Bytes left over MUST be | sparse_left_over_byte
The n of all blocks of a tensor MUST sum to `changed` | sparse_changed_differs sparse_no_change_at_all
at least one unit MUST change | context_adaptive_nothing context_static_nothing
All r bytes MUST be needed | context_raw_left_over context_raw_padding context_raw_missing
D MUST be at most 2^(m-1) if it moved down | context_adaptive_distance_too_large context_static_distance_too_large
A rate that is not from 0 to 50 MUST | context_adaptive_rate_too_large context_adaptive_rate_negative context_adaptive_next_rate_too_large
of which the last MUST NOT be 0 | context_adaptive_zero_at_end
check(): code MUST be below | context_adaptive_code_too_large context_adaptive_code_leaves_range context_adaptive_code_leaves_range_in_run
plus a step, and MUST be one of the groups | context_static_group_too_large context_static_group_negative
Their number k MUST be at most 15 | context_static_number_too_large
last MUST be below T | context_static_table_last_too_large context_static_table_common_over_last
MUST be at least 1; f[last] MUST NOT be 0 | context_static_table_sum_too_large context_static_table_last_is_0
each state MUST be 2^16 | context_static_word_left_over context_static_half_a_word context_static_state_at_end
The list MUST NOT be empty where a patch file states | folder_base_files_empty
which MUST be `patch/` | folder_shard_path_not_under_patch
which MUST be the `digest` in the patch file's metadata | folder_shard_digest_wrong
That file's `target.path` MUST be `target` | folder_shard_of_other_target folder_shard_base_identity_differs folder_shard_target_identity_differs folder_shard_with_base_files
which MUST NOT end in `.safetensors` | folder_weight_file_among_files
which MUST NOT be a directory part of another such place | folder_stored_place_below_other
A frame MUST be whole (section 2) | folder_frame_truncated folder_frame_trailing_byte folder_frame_twice folder_frame_window_too_large zstd_checksum_wrong
Its content MUST have the size `size` | folder_output_size_wrong folder_output_sha256_wrong zstd_content_shorter
MUST be a *safe path* | folder_path_parent folder_path_git_hook folder_path_own_index folder_path_of_33_components ok_folder_paths_at_limits
MUST stop with an error of the machine | test_minimal_reader::test_output_paths_that_a_file_system_takes_for_one
It MUST NOT write one over the other | test_minimal_reader::test_output_paths_that_a_file_system_takes_for_one
A reader MUST NOT leave anything at the output place | test_vectors::test_each_reader_gives_what_the_vector_states
`base.identity` MUST be the `target.identity` of the one before | chain_in_wrong_order chain_identity_differs faults_chain_in_wrong_order_on_its_target
Each of these tensors MUST exist | base_lacks_tensor base_other_dtype base_piece_too_short base_lacks_scope
The adapted base (section 8) MUST have the tensor digest | base_other_digest_of_same base_other_digest_of_delta base_digest_is_of_whole_tensor
`files` needs MUST exist, with its SHA-256 | folder_base_lacks_file_of_same folder_base_other_file_of_delta
The tensor digest of the result MUST be the entry's | result_digest_of_delta_wrong result_digest_of_new_wrong
whose size and SHA-256 MUST be the index's | folder_output_sha256_wrong folder_delta_sha256_wrong
the base is the target already: a reader MUST say so | base_is_target_already folder_base_is_target_of_other_scopes chain_base_is_last_target
MUST check a stated size against these | container_length_huge table_frame_content_size_huge plane_content_size_huge test_limits::test_decoded_sizes_have_a_limit
MUST reject any other than its own as `unsupported` | metadata_version_2 metadata_version_minus_1 version_0 version_text metadata_version_missing folder_index_version_2
a reader MUST reject an unknown member of any object | metadata_unknown_member unknown_member_of_target table_entry_unknown_member_of_base table_entry_unknown_kind table_entry_unknown_codec table_entry_unknown_dtype
Writers MUST be deterministic | test_make::test_patches_of_folders_are_deterministic test_make::test_patches_of_files_are_deterministic
sections 5, 6 and 9 that can be checked without the base is a MUST | container_dtype_not_u8 metadata_base_missing table_removed_unsorted folder_files_unsorted
`already_target` is said instead of `wrong_base` only | base_is_target_without_delta base_has_one_delta_of_two chain_base_is_first_target
a reader MUST know the output's size from the headers | test_overwrite::test_too_little_space_is_seen_before_anything_is_written test_main::test_a_full_disk
"""
"""A part of each sentence with MUST that no other has, and what holds it: vectors, and tests as ``FILE::TEST``."""


def text() -> str:
    return " ".join((SPEC / "ckptdiff-v1.md").read_text().split())


def held() -> dict[str, list[str]]:
    """What holds each MUST, by a part of its sentence."""
    rows = (line.split(" | ") for line in HELD.strip().split("\n"))
    return {part: names.split() for part, names in rows}


def uncovered() -> list[str]:
    """The surroundings of each MUST that no row's sentence has."""
    whole = text()
    covered = set[int]()
    for part in held():
        begin = whole.index(part)
        end = min((at for at in (whole.find(stop, begin + len(part)) for stop in (". ", " | ", "; ")) if at >= 0), default=len(whole))
        start = max(whole.rfind(stop, 0, begin + 1) for stop in (". ", " | ", "; "))
        covered |= {match.start() for match in re.finditer("MUST", whole) if start <= match.start() < end}
    explained = {match.start() for match in re.finditer("MUST", whole) if "BCP 14" in whole[match.start() : match.start() + 90]}
    return [
        whole[max(match.start() - 60, 0) : match.start() + 60]
        for match in re.finditer("MUST", whole)
        if match.start() not in covered | explained
    ]


def missing(name: str) -> bool:
    """Whether there is no such vector or test."""
    if "::" not in name:
        return not (SPEC / "vectors" / f"{name}.vector").exists()
    file, test = name.split("::")
    return not any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").glob(f"*/{file}.py"))


def main() -> None:
    for part, names in held().items():
        print(f"{part}\n    {' '.join(names)}")
    print(f"{len(held())} sentences; without a vector or test: {uncovered() or 'none'}")


if __name__ == "__main__":
    main()
