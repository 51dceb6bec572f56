"""The real ``AsyncGRPOTrainer`` of TRL, and the real Trainer, publish to a chain and update a server that speaks vLLM's routes."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[transformers]'")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import ckptdiff  # noqa: E402
from ckptdiff.errors import BaseMismatchError, CheckpointError, StoreError  # noqa: E402
from ckptdiff.integrations.trl import ChainWeightTransfer, SyncCallback  # noqa: E402
from tests.support.vllm_server import Loopback, serving  # noqa: E402

pytestmark = pytest.mark.slow
VOCABULARY = [chr(c) for c in range(33, 80)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("policy")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    from tokenizers import Tokenizer, models

    words = {word: k for k, word in enumerate(["<pad>", "<s>", "</s>", *VOCABULARY])}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


class Engine(torch.nn.Module):
    """What the server serves: the tensors of the checkpoint, in one piece, with the loader of an engine."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        from safetensors.torch import load_file

        self.state = {name: tensor.clone() for name, tensor in load_file(base / "model.safetensors").items()}
        for k, tensor in enumerate(self.state.values()):
            self.register_buffer(f"t{k}", tensor)

    def load_weights(self, weights: Iterator[tuple[str, Any]]) -> None:
        for name, tensor in weights:
            self.state[name].copy_(tensor)


@pytest.fixture
def server(base: Path) -> Iterator[Loopback]:
    with serving(Engine(base), str(base)) as running:
        yield running


def serves(server: Loopback, model: Any) -> bool:
    """Whether the server has the model's weights, in the checkpoint's dtype, bit for bit."""
    wanted = {name: p.detach().to(torch.bfloat16) for name, p in model.named_parameters()}
    return wanted.keys() == server.model.state.keys() and all(torch.equal(server.model.state[name], t) for name, t in wanted.items())


def train_a_little(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)


class Worker:
    """A rollout worker that has nothing to do."""

    def __init__(self) -> None:
        self.rollout_buffer: Any = queue.Queue()
        self.metrics_queue: Any = queue.Queue()
        self.versions = list[int]()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def update_model_version(self, model_version: int) -> None:
        self.versions.append(model_version)

    def check_health(self, stale_after_s: float) -> None:
        pass


@pytest.mark.filterwarnings("ignore")  # of TRL and transformers among themselves
def test_async_grpo_syncs_its_policy(base: Path, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own calls, in its own order, with its own stream of tensors. What needs a GPU there, the forward pass, is not run."""
    trl = pytest.importorskip("trl.experimental.async_grpo", reason="TRL is not installed: pip install 'trl>=1.16'")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from trl.experimental.async_grpo import async_grpo_trainer

    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda *_: None)  # asks a GPU for its name
    transfer, worker = ChainWeightTransfer(tmp_path / "chain", server.url, base), Worker()
    options = trl.AsyncGRPOConfig(str(tmp_path / "run"), max_steps=1, bf16=False, use_cpu=True, dtype="float32", report_to=[])
    trainer = trl.AsyncGRPOTrainer(
        model=str(base), args=options,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"]}), reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        rollout_worker=worker, weight_transfer=transfer,
    )  # fmt: skip
    assert trainer.weight_transfer is transfer
    begin = next(row for row in trainer.callback_handler.callbacks if type(row).__name__ == "_TrainBeginCallback")
    begin.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert serves(server, trainer.model) and transfer.synced[0].updated is None  # the first sync finds the base there
    for step in (2, 3):
        train_a_little(trainer.model)
        server.log.clear()
        trainer._sync_weight()
        synced = transfer.synced[-1]
        assert serves(server, trainer.model) and synced.updated is not None and synced.version.step == step
        assert server.version == f"{step}-{ckptdiff.identity(server.model.state)}" and synced.version.changed > 0
        pause = server.log.index("pause")  # what is encoded, staged and opened comes before it
        assert "update_weights stage" in server.log[:pause] and server.log[pause - 1] == "start_weight_update"
        assert server.log[pause:] == ["pause", "reset_prefix_cache", "update_weights apply", "finish_weight_update", "resume"]
    assert worker.versions == [1, 2, 3] and not server.paused
    transfer.destroy()

    again = ChainWeightTransfer(tmp_path / "chain", server.url, base)  # a run that was stopped, and goes on
    again.init_weight_transfer()
    train_a_little(trainer.model)
    again.send_weights((name, parameter.detach()) for name, parameter in trainer.model.named_parameters())
    assert serves(server, trainer.model) and again.synced[-1].version.step == 4
    again.destroy()


def test_a_trainer_without_such_a_hook_syncs_by_a_callback(base: Path, server: Loopback, tmp_path: Path) -> None:
    """With a frozen embedding, which other trainers do not send."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    transfer = ChainWeightTransfer(tmp_path / "chain", server.url, base, pause_mode="wait")
    rows = [{"input_ids": [1, 5, 9, 2], "labels": [1, 5, 9, 2]}] * 8
    arguments = transformers.TrainingArguments(
        tmp_path / "run", max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[SyncCallback(transfer, every=2)])
    trainer.train()
    assert serves(server, model) and [row.version.step for row in transfer.synced] == [1, 2, 3]
    assert all(row.updated is not None for row in transfer.synced[1:])


def test_frozen_tensors_stay_those_of_the_base(base: Path, server: Loopback, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    transfer = ChainWeightTransfer(tmp_path / "chain", server.url, base)
    transfer.init_weight_transfer()
    for parameter in model.model.layers.parameters():
        parameter.data += 0.01
    transfer.send_weights((name, p.detach()) for name, p in model.named_parameters() if "layers" in name)
    assert serves(server, model)
    with pytest.raises(CheckpointError, match="other_name"):
        transfer.send_weights(iter([("other_name", torch.zeros(2))]))
    transfer.destroy()


def test_what_goes_wrong_is_told(base: Path, server: Loopback, tmp_path: Path) -> None:
    transfer = ChainWeightTransfer(tmp_path / "chain", server.url, base)
    with pytest.raises(CheckpointError, match="call init_weight_transfer first"):
        transfer.send_weights(iter(()))
    with pytest.raises(StoreError, match="is the server running there"):
        ChainWeightTransfer(tmp_path / "other", "http://127.0.0.1:9", base).init_weight_transfer()
    transfer.init_weight_transfer()
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    train_a_little(model)
    server.model.state["model.norm.weight"][3] += 1  # something else writes to the served model
    with pytest.raises(BaseMismatchError, match="was changed since"):
        transfer.send_weights((name, p.detach()) for name, p in model.named_parameters())
    assert not server.paused
    server.model.state["model.norm.weight"][3] -= 1
    transfer.send_weights((name, p.detach()) for name, p in model.named_parameters())  # the server catches up
    assert serves(server, model) and transfer.synced[-1].version.step == 2
    transfer.destroy()
    changed = tmp_path / "changed"
    model.save_pretrained(changed)
    with pytest.raises(BaseMismatchError, match="base"):
        ChainWeightTransfer(tmp_path / "chain", server.url, changed).init_weight_transfer()
