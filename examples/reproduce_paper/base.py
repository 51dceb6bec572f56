"""The base model: a small Llama, trained on the spot in fp32 and saved as bf16."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
import transformers
from plan import Scale, Shape


def new_model(scale: Scale, shape: Shape) -> transformers.LlamaForCausalLM:
    """Fresh weights; embeddings are tied, as small models' are."""
    config = transformers.LlamaConfig(
        vocab_size=scale.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 32,
        num_key_value_heads=shape.width // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config)


def train_base(scale: Scale, shape: Shape, folder: Path) -> None:
    """Tokenizer and model, as ``save_pretrained`` writes them."""
    transformers.set_seed(0)
    text = data.library_text(scale.text)
    tokenizer = data.train_tokenizer(text, scale.vocabulary, folder)
    model = new_model(scale, shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.base_rate, betas=(0.9, 0.98), weight_decay=0.01)
    rows = data.windows(tokenizer, text, 128, seed=0)
    for step in range(shape.base_steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / shape.base_steps)
        optimizer.param_groups[0]["lr"] = shape.base_rate * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * cosine)
        tokens, labels = (torch.tensor(np.stack(side)) for side in zip(*itertools.islice(rows, 32), strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(folder)


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], *, sample: bool) -> list[str]:
    """What the model says: greedily, or one sample at temperature 1."""
    model.eval()
    found = []
    for start in range(0, len(prompts), 256):
        batch = tokenizer(list(prompts[start : start + 256]), return_tensors="pt", padding=True)
        with torch.no_grad():
            out = model.generate(**batch, max_new_tokens=data.MAX_ANSWER, do_sample=sample, top_k=0, pad_token_id=tokenizer.pad_token_id)
        found += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def accuracy(model: Any, tokenizer: Any, task: str, tests: int) -> dict[str, Any]:
    """Right answers, each the most likely one, to exercises that no training saw: how many, of how many, and both by level."""
    exercises = data.held_out(task, tests)
    said = answers(model, tokenizer, [prompt for prompt, _ in exercises], sample=False)
    levels: dict[str, list[int]] = {}
    for (_, answer), text in zip(exercises, said, strict=True):
        counts = levels.setdefault(str(data.level(task, answer)), [0, 0])
        counts[0] += int(data.reward(answer, text))
        counts[1] += 1
    return {"right": sum(right for right, _ in levels.values()), "of": len(exercises), "levels": dict(sorted(levels.items()))}
