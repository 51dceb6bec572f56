"""What belongs to a checkpoint: trainer state, logs and secrets stay out, weights and tokenizers never do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ckptdiff
from ckptdiff.checkpoint.other_formats import refuse_without_safetensors
from ckptdiff.checkpoint.secrets import suspicious_name
from ckptdiff.checkpoint.selection import select
from ckptdiff.cli.main import main
from ckptdiff.hub.ids import HubId, parse_id
from ckptdiff.units import byte_size
from tests.support.checkpoints import bf16, tree, write
from tests.support.small_pair import Pair

STATE = {
    "HF Trainer": """optimizer.pt optimizer.bin optimizer-00001-of-00002.safetensors optimizer.safetensors.index.json
        optimizer/__0_0.distcp scheduler.pt scaler.pt rng_state.pth rng_state_7.pth
        trainer_state.json training_args.bin checkpoint-10/model.safetensors global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt""",
    "accelerate": """optimizer_1.bin scheduler.bin scheduler_1.bin sampler.bin sampler_1.bin random_states_0.pkl random_states_12.pkl
        custom_checkpoint_0.pkl dl_state_dict.bin dl_state_dict_1.bin pytorch_model_fsdp.bin pytorch_model_fsdp_rank0.bin
        pytorch_model_fsdp_0/.metadata pytorch_model_fsdp_0/__0_0.distcp optimizer_0/__0_0.distcp optimizer_0/.metadata
        pytorch_model/mp_rank_00_model_states.pt pytorch_model/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt""",
    "DeepSpeed": """mp_rank_00_model_states.pt bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt latest latest_universal
        layer_01-model_00-model_states.pt zero_pp_rank_0_mp_rank_00_model_states.pt expert_3_mp_rank_00_optim_states.pt""",
    "verl": """model_world_size_8_rank_0.pt optim_world_size_8_rank_0.pt extra_state_world_size_8_rank_0.pt data.pt
        actor/optim_world_size_8_rank_0.pt latest_checkpointed_iteration.txt dist_ckpt/__0_0.distcp dist_ckpt/common.pt
        dist_ckpt/.metadata dist_ckpt/metadata.json optim/distrib_optim_pp0_tp0.pt model/mp_rank_00_000/model_states.pt""",
    "Megatron": """iter_0000100/mp_rank_00/model_optim_rng.pt iter_0000100/mp_rank_00/distrib_optim.pt dist_optimizer/x.distcp
        latest_checkpointed_iteration.txt iter_0000100/__3_1.distcp train_dataloader_dprank000.pt""",
    "torchtune": "recipe_state/recipe_state.pt recipe_state.pt epoch_0/recipe_state.pt",
    "logs": """train.log train.log.1 logs/train.txt nohup.out slurm-123.out slurm-123.err events.out.tfevents.17.host.1.0
        runs/Nov01/events.out.tfevents.1 wandb/run-1/files/config.yaml sub/events.out.tfevents.2 mlruns/0/meta.yaml trainer_log.jsonl
        lightning_logs/version_0/hparams.yaml completions/completions_00001.parquet tensorboard/x swanlog/run/x logging.jsonl""",
    "housekeeping": """.git/config .ipynb_checkpoints/config-checkpoint.json sub/.ipynb_checkpoints/x.py .cache/huggingface/x
        __pycache__/m.pyc .DS_Store x.lock x.incomplete""",
    "secrets": """.env .env.local prod.env .envrc id_rsa id_rsa.pub sub/id_ed25519 server.pem
        tls.key putty.ppk .netrc credentials.json token
        .aws/config .ssh/known_hosts kaggle.json .pgpass x.jks .env-prod .env_local hf_token .hf_token hf_token.txt
        application_default_credentials.json""",
}

MODEL_FILES = """
model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json model.fp16.safetensors consolidated.safetensors
adapter_model.safetensors adapter_config.json unet/diffusion_pytorch_model.safetensors scheduler/scheduler_config.json
optimizer_config.json optimizers/muon.py optimizer.py sub/scheduler.json text_encoder/model.safetensors.index.fp16.json
config.json generation_config.json tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json added_tokens.json
vocab.json vocab.txt merges.txt spiece.model sentencepiece.bpe.model tekken.json chat_template.jinja preprocessor_config.json
processor_config.json modeling_custom.py configuration_custom.py README.md LICENSE .gitattributes model_index.json 1_Pooling/config.json
modules.json sentence_bert_config.json vae/config.json pytorch_model.bin model.gguf original/consolidated.00.pth tf_model.h5
flax_model.msgpack onnx/model.onnx onnx/model.onnx_data speaker_embeddings/speaker_0.npz voices/af.pt mel_filters.npz all_results.json
data.pt latest metadata.json common.pt sub/latest tokens.txt tokenizer/vocab.json keys.json monkey.txt environment.yml
sampling_params.json logits.json login.py logo.png layout.json outputs.json extra_state.md samplers/x.json rng.py eval/log.txt
hf_tokenizer.json hf_token_map.json
"""


@pytest.mark.parametrize("who", STATE)
def test_state_logs_and_secrets_stay_out(who: str) -> None:
    names = STATE[who].split()
    beside = ["zero_to_fp32.py"] if who == "DeepSpeed" else []
    assert select([*names, *beside, "model.safetensors"])[0] == [*beside, "model.safetensors"]
    assert select(names, include=["*"])[0] == names


def test_files_of_models_stay_in() -> None:
    names = MODEL_FILES.split()
    assert select(names) == (names, [])


@pytest.mark.parametrize(
    ("name", "telling", "silent"),
    [
        ("latest", ["global_step5/x", "zero_to_fp32.py", "tag/mp_rank_00_model_states.pt"], ["model.safetensors", "sub.py"]),
        ("sub/latest", ["sub/global_step5/x"], ["global_step5/x"]),
        ("data.pt", ["optimizer.pt", "actor/optim_world_size_8_rank_0.pt", "trainer_state.json"], ["train.log", "pytorch_model.bin"]),
        ("metadata.json", ["__0_0.distcp"], ["optimizer.pt"]),
    ],
)
def test_names_that_say_little_alone_are_told_by_their_neighbours(name: str, telling: list[str], silent: list[str]) -> None:
    assert all(name in select([name, other])[1] for other in telling)
    assert all(name in select([name, other])[0] for other in silent)


def test_push_and_make_have_one_rule_of_secret_names() -> None:
    names = STATE["secrets"].split()
    assert all(map(suspicious_name, names)) and not any(map(suspicious_name, MODEL_FILES.split()))


def run(*args: object) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_make_names_what_stays_out(folders: Pair, tmp_path: Path) -> None:
    wanted = tree(folders.target)
    for name in (*STATE["verl"].split(), ".env", "id_rsa", "nohup.out"):
        (folders.target / name).parent.mkdir(parents=True, exist_ok=True)
        (folders.target / name).write_text("state")
    text = run("make", folders.base, folders.target, "-o", tmp_path / "p")
    (left_out,) = (line for line in text.splitlines() if "actor/optim_world_size_8_rank_0.pt" in line)
    assert left_out.strip().startswith("left out") and left_out.endswith(" and 3 more")
    assert "left out  .env, id_rsa: named like secrets\n" in text
    run("apply", folders.base, tmp_path / "p", "-o", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted
    made = ckptdiff.make(folders.base, folders.target, tmp_path / "q", include=[".env"])
    assert made.secrets == ("id_rsa",) and ".env" in made.files


def test_make_names_weights_in_other_formats(folders: Pair, tmp_path: Path) -> None:
    """Files that are equal in the base take no space in the patch, and are not named."""
    noise = np.random.default_rng(1).bytes(5000)
    for side in (folders.base, folders.target):
        (side / "same.gguf").write_bytes(noise)
    (folders.target / "pytorch_model.bin").write_bytes(noise * 2)
    (folders.target / "onnx").mkdir()
    (folders.target / "onnx" / "model.onnx").write_bytes(noise)
    made = ckptdiff.make(folders.base, folders.target, tmp_path / "p")
    assert list(made.other_formats) == ["onnx/model.onnx", "pytorch_model.bin"]
    text = run("make", folders.base, folders.target, "-o", tmp_path / "q")
    sizes = {name: (tmp_path / "p" / "files" / f"{name}.zst").stat().st_size for name in made.other_formats}
    assert made.other_formats == sizes and "same.gguf (" not in text
    assert f"({byte_size(sizes['pytorch_model.bin'])} of the patch); where they hold the weights once more" in text
    assert "; where they hold the weights once more, leave them out with --exclude '*.bin' --exclude '*.onnx'\n" in text
    run("make", folders.base, folders.target, "-o", tmp_path / "r", "--exclude", "*.bin", "--exclude", "*.onnx")
    assert not [path for path in (tmp_path / "r").rglob("*") if "onnx" in path.name or "pytorch" in path.name]


MERGER = "python -m verl.model_merger merge --backend "
REFUSED = {
    "verl": ("model_world_size_8_rank_0.pt huggingface/config.json", MERGER + "fsdp --local_dir {} --target_dir OUT"),
    "verl, above": ("actor/model_world_size_2_rank_0.pt data.pt", MERGER + "fsdp --local_dir {}/actor --target_dir OUT"),
    "verl with Megatron": ("dist_ckpt/__0_0.distcp dist_ckpt/common.pt", MERGER + "megatron --local_dir {} --target_dir OUT"),
    "DeepSpeed": (
        "global_step5/mp_rank_00_model_states.pt latest config.json",
        "python -m deepspeed.utils.zero_to_fp32 {} OUT --safe_serialization",
    ),
    "FSDP": ("pytorch_model_fsdp_0/__0_0.distcp optimizer_0/__0_0.distcp", "accelerate merge-weights {}/pytorch_model_fsdp_0 OUT"),
    "Megatron": ("iter_0000010/mp_rank_00/model_optim_rng.pt", "Megatron Bridge"),
    "whole": ("pytorch_model_fsdp.bin optimizer.bin", "pytorch_model_fsdp.bin is not safetensors, which ckptdiff needs: load it with"),
    "beside state": ("model.pt optimizer.bin", "model.pt is not safetensors, which ckptdiff needs: load it with torch.load"),
    "state": ("optimizer.pt scheduler.pt", "holds no weights, only state such as optimizer.pt: ckptdiff makes no patches of optimizer"),
    "nothing yet": ("checkpoint-5/optimizer.pt", "{}: holds no weights itself; is {}/checkpoint-5 meant?"),
    "no state": ("scheduler/scheduler_config.json model_index.json", "expected a .safetensors file or a folder that holds one, found none"),
}


@pytest.mark.parametrize("who", REFUSED)
def test_a_folder_of_state_names_the_tool_that_converts_it(who: str, folders: Pair, tmp_path: Path) -> None:
    names, words = REFUSED[who]
    for name in names.split():
        (tmp_path / "state" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "state" / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(ckptdiff.CheckpointError) as caught:
        ckptdiff.make(folders.base, tmp_path / "state", tmp_path / "out")
    assert words.replace("{}", str(tmp_path / "state")) in str(caught.value)


@pytest.mark.parametrize("inside", ["checkpoint-{}", "global_step{}/actor/huggingface"])
def test_a_folder_of_checkpoints_names_the_last(inside: str, folders: Pair, tmp_path: Path) -> None:
    for step in (9, 10):
        write(tmp_path / "run" / inside.format(step) / "model.safetensors", {"w": bf16([1.0])})
    last = tmp_path / "run" / inside.format(10)
    with pytest.raises(ckptdiff.CheckpointError) as caught:
        ckptdiff.make(folders.base, tmp_path / "run", tmp_path / "out")
    assert str(caught.value).endswith(f"but {inside.format(10)} does (and 1 more): give {last}, or take files in with --include")
    with pytest.raises(ckptdiff.CheckpointError) as caught:
        ckptdiff.verify(folders.patch, base=tmp_path / "run")
    assert str(caught.value).endswith(f"(and 1 more): give {last}")


@pytest.mark.parametrize(
    ("repo", "given"),
    [
        (HubId("org/run"), HubId("org/run", None, "checkpoint-5")),
        (HubId("org/run", "v1", "sub"), HubId("org/run", "v1", "sub/checkpoint-5")),
    ],
    ids=str,
)
def test_a_repo_of_checkpoints_names_an_id(repo: HubId, given: HubId) -> None:
    for name in ("model.safetensors", "optimizer.pt"):
        with pytest.raises(ckptdiff.CheckpointError) as caught:
            refuse_without_safetensors(repo, [f"checkpoint-5/{name}"], (), can_include=False)
        assert re.search(r"(give|is) (\S+)( meant\?)?$", str(caught.value))[2] == str(given)  # type: ignore[index]
    assert parse_id(str(given)) == given


def test_an_incomplete_set_of_shards_names_no_others(folders: Pair, tmp_path: Path) -> None:
    """The set of another precision is complete, and is not named."""
    for name in ("model-00001-of-00002", "model-00001-of-00002.fp16", "model-00002-of-00002.fp16"):
        write(tmp_path / "shards" / f"{name}.safetensors", {name: bf16([1.0])})
    with pytest.raises(ckptdiff.CheckpointError) as caught:
        ckptdiff.make(folders.base, tmp_path / "shards", tmp_path / "out")
    assert str(caught.value).endswith("leave the others out with --exclude model-00001-of-00002.safetensors")
