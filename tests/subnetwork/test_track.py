"""What the tracker counts while a model is trained, against plain counting of whole copies."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.subnetwork import UpdateTracker  # noqa: E402
from tests.support.networks import backward, network  # noqa: E402


def test_the_tracker_counts_as_whole_copies_do() -> None:
    """Against plain counting of whole copies, every step and every third, and of each second row."""
    for every, sample in ((1, 1), (3, 1), (1, 2)):
        model = network(torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        tracker = UpdateTracker(model, optimizer, every=every, sample=sample)

        def watched(model: Any = model, sample: int = sample) -> Any:
            parts = (part.detach()[::sample] if part.ndim > 1 else part.detach() for part in model.parameters())
            return torch.cat([part.reshape(-1) for part in parts]).view(torch.int16).clone()

        start = last = watched()
        ever = torch.zeros(len(start), dtype=torch.bool)
        for step in range(1, 10):
            backward(model, torch.bfloat16, goal=(-1.0) ** step)
            grads = [p.grad[::sample] if p.ndim > 1 else p.grad for p in model.parameters()]
            density = sum(int((g != 0).sum()) for g in grads) / len(start)
            optimizer.step()
            optimizer.zero_grad()
            if step % every:
                continue
            now = watched()
            changed = now != start
            ever |= changed
            record, n = tracker.records[-1], len(start)
            expected = (step, 1 - int(changed.sum()) / n, int((now != last).sum()) / n, int(ever.sum()) / n)
            assert (record.step, record.sparsity, record.since_last, record.ever) == expected
            assert (record.cancelled, record.gradient_density) == (int((ever & ~changed).sum()) / n, density)
            last = now
        assert len(tracker.records) == 9 // every and 0 < tracker.records[-1].sparsity < 1
        tracker.remove()
        optimizer.step()
        assert len(tracker.records) == 9 // every


def test_a_tracker_of_masters_watches_what_checkpoints_show() -> None:
    """fp32 weights watched as bf16: what their checkpoints would differ by; as they are, every one differs."""
    model = network(torch.float32)
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(part.bfloat16())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    saved = UpdateTracker(model, optimizer, every=1, dtype=torch.bfloat16)
    masters = UpdateTracker(model, optimizer, every=1)

    def checkpoint() -> Any:
        return torch.cat([part.detach().bfloat16().reshape(-1) for part in model.parameters()]).view(torch.int16)

    start = last = checkpoint()
    for _ in range(3):
        backward(model, torch.float32)
        optimizer.step()
        optimizer.zero_grad()
        now = checkpoint()
        record, n = saved.records[-1], len(start)
        assert (record.sparsity, record.since_last) == (1 - int((now != start).sum()) / n, int((now != last).sum()) / n)
        last = now
    assert 0.5 < saved.records[-1].sparsity < 1 and masters.records[-1].sparsity < 0.1
