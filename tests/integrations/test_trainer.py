"""The callbacks of the real Trainer of transformers: the mask holds, and records are in its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

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
