"""The callbacks of the real Trainer of transformers: the mask holds, records are in its log, checkpoints are in a chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

import ckptdiff  # noqa: E402
from ckptdiff.subnetwork import Mask  # noqa: E402
from tests.support.networks import bits_of, moved, network, some_mask  # noqa: E402


@pytest.mark.slow
def test_the_callbacks_keep_the_mask_and_log_records(tmp_path: Path) -> None:
    """The real Trainer: the mask holds, records are in its log."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[transformers]'")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from ckptdiff.integrations.trainer import SubnetworkCallback, UpdateTrackerCallback

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(torch.float32)

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            return {"loss": (self.layers(x) - labels).square().mean()}

    model = Model()
    mask = Mask.from_arrays({f"layers.{name}": some_mask(model.layers).flags(name) for name in some_mask(model.layers).bits})
    data = [{"x": torch.randn(20), "labels": torch.ones(5)} for _ in range(64)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=12, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-2, weight_decay=0.1,
        report_to=[], use_cpu=True, save_strategy="no", logging_steps=2,
    )  # fmt: skip
    callback = SubnetworkCallback(mask)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    tracking = UpdateTrackerCallback(trainer, every=4)
    trainer.add_callback(tracking)
    before = bits_of(model.state_dict())
    trainer.train()
    inside, outside = moved(before, bits_of(model.state_dict()), mask)
    assert outside == 0 and inside > 0.9 * mask.total
    logged = [row for row in trainer.state.log_history if "update/sparsity" in row]
    assert [row["step"] for row in logged] == [4, 8, 12] == [record.step for record in tracking.records]
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [2, 4, 6, 8, 10, 12]  # the trainer's own rows
    assert logged[-1]["update/sparsity"] == tracking.records[-1].sparsity == 1 - inside / sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_checkpoints_in_a_chain_resume_training(tmp_path: Path) -> None:
    """The weights of earlier checkpoints are removed; restored from the chain, they give the same losses again."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[transformers]'")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from ckptdiff.integrations.trainer import ChainCallback, restore_weights

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    data = [{"input_ids": torch.arange(k, k + 8) % 64, "labels": torch.arange(k, k + 8) % 64} for k in range(40)]
    chain, out = tmp_path / "chain", tmp_path / "run"

    def train(resume: str | None, callbacks: list[Any]) -> dict[int, float]:
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        arguments = transformers.TrainingArguments(
            out, max_steps=8, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[], use_cpu=True, save_steps=2, logging_steps=1,
            seed=1,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}

    losses = train(None, [ChainCallback(chain, tmp_path / "base", remove_weights=True)])
    assert [row.step for row in ckptdiff.chain_list(chain).steps] == [2, 4, 6, 8] and ckptdiff.chain_verify(chain).ok
    kept = out / "checkpoint-4"
    left = {path.name for path in kept.iterdir()}
    assert "model.safetensors" not in left and {"optimizer.pt", "scheduler.pt", "trainer_state.json"} <= left
    assert (out / "checkpoint-8" / "model.safetensors").exists()
    restore_weights(chain, kept, 4, base=tmp_path / "base")
    assert left < {path.name for path in kept.iterdir()} and not [path for path in out.iterdir() if path.name.startswith(".")]
    again = train(str(kept), [])
    assert {step: again[step] for step in (5, 6, 7, 8)} == {step: losses[step] for step in (5, 6, 7, 8)}
