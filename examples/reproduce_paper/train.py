"""One training run with a trainer of TRL, watched by ckptdiff: a patch from the base, and a record of what happened."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import base
import data
import datasets
import torch
import transformers
import trl
from measure import early, of_run
from places import base_of, patch_of, rollouts_of, run_folder, write_json
from plan import Run, Scale

import ckptdiff
from ckptdiff.integrations.trainer import SubnetworkCallback, UpdateTrackerCallback
from ckptdiff.subnetwork import Mask, smallest_weights

BATCH = 64
"""Sequences a step: examples of SFT, both sides of DPO's pairs, completions of GRPO."""
GROUP = 8
"""GRPO's completions of one prompt."""


class Marks(transformers.TrainerCallback):
    """After some steps keeps the patch from the base, what an early guess of the subnetwork has to go by, and takes the accuracy."""

    def __init__(self, run: Run, scale: Scale, folder: Path, tokenizer: Any) -> None:
        self.run, self.scale, self.folder, self.tokenizer = run, scale, folder, tokenizer
        self.start: dict[str, torch.Tensor] = {}
        self.accuracy: list[tuple[int, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = saved_weights(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.scale.marks and state.global_step < state.max_steps:
            patch = ckptdiff.diff(self.start, saved_weights(kwargs["model"]), threads=1)
            (self.folder / f"step-{state.global_step:04}.safetensors").write_bytes(patch.to_bytes())
            if self.run.algorithm == "grpo":
                found = base.accuracy(kwargs["model"], self.tokenizer, self.run.task, self.scale.tests)
                kwargs["model"].train()
                self.accuracy.append((state.global_step, found["right"] / found["of"]))


def saved_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights as a bf16 checkpoint has them, tied ones once."""
    return {name: part.detach().to(torch.bfloat16, copy=True) for name, part in model.named_parameters()}


def answer_reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """GRPO's reward: 1 for the right answer, and a tenth for the form: by the share of its characters that are digits."""
    form = [sum(c.isdigit() for c in said) / max(len(said), 1) for said in completions]
    return [data.reward(right, said) + 0.1 * part for right, said, part in zip(answer, completions, form, strict=True)]


def dataset(run: Run, scale: Scale, out: Path) -> datasets.Dataset:
    """What a run learns from."""
    said = json.loads((rollouts_of(out, run.model) / f"{run.task}.json").read_text())
    if run.algorithm == "dpo":
        words = data.other_words if run.data == "new" else lambda task, prompt: prompt
        rows = [row | {"prompt": words(run.task, row["prompt"])} for row in data.preferences(said)]
    elif run.algorithm == "grpo":
        rows = [{"prompt": row["prompt"], "answer": row["answer"]} for row in said]
    else:
        kept = [row for row in said if run.data != "own" or data.reward(row["answer"], row["said"])] or said  # a quick base is never right
        words = data.other_words if run.data == "new" else lambda task, prompt: prompt
        rows = [{"prompt": words(run.task, row["prompt"]), "completion": row["answer"]} for row in kept]
    return datasets.Dataset.from_list(rows)


def trainer_of(run: Run, scale: Scale, out: Path, model: Any, tokenizer: Any, work: Path) -> Any:
    """TRL's trainer."""
    common: dict[str, Any] = dict(
        output_dir=str(work),
        use_cpu=True,
        bf16=run.precision == "fp32",  # autocast: the fp32 weights take part rounded to bf16, as in mixed precision elsewhere
        max_steps=run.steps,
        learning_rate=run.rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=run.clip,
        seed=run.seed,
        gradient_checkpointing=False,
        logging_steps=scale.every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rest: dict[str, Any] = dict(train_dataset=dataset(run, scale, out), processing_class=tokenizer)
    if run.algorithm == "sft":
        return trl.SFTTrainer(model, args=trl.SFTConfig(per_device_train_batch_size=BATCH, **common), **rest)
    if run.algorithm == "dpo":
        return trl.DPOTrainer(model, args=trl.DPOConfig(per_device_train_batch_size=BATCH // 2, beta=run.beta, **common), **rest)
    sampling: dict[str, Any] = dict(num_generations=GROUP, max_completion_length=data.MAX_ANSWER, temperature=1.0, beta=run.beta)
    config = trl.GRPOConfig(per_device_train_batch_size=BATCH, **sampling, **common)
    return trl.GRPOTrainer(model, reward_funcs=answer_reward, args=config, **rest)


def train(run: Run, scale: Scale, out: Path) -> None:
    """Train, save, make and verify the patch, measure; writes ``runs/NAME`` with ``record.json`` last."""
    folder, start = run_folder(out, run.name), base_of(out, run.model)
    started, cpu = time.perf_counter(), time.process_time()
    transformers.set_seed(run.seed)
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    trainer = trainer_of(run, scale, out, model, tokenizer, folder / "trainer")
    watching = UpdateTrackerCallback(trainer, every=scale.every, dtype=torch.bfloat16)
    marks = Marks(run, scale, folder, tokenizer)
    trainer.add_callback(watching)
    if run.mask:
        trainer.add_callback(SubnetworkCallback(mask_of(run, out)))
    elif run.part == "updates":
        trainer.add_callback(marks)
    trainer.train()
    trained = time.perf_counter()
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    keep_patch(start, folder)
    record = {
        "run": asdict(run),
        "accuracy": base.accuracy(model, tokenizer, run.task, scale.tests),
        "marks": marks.accuracy,
        "curve": [asdict(row) for row in watching.records] if run.part == "updates" else [],
        "log": [
            {k: row[k] for k in ("step", "loss", "reward") if k in row}
            for row in trainer.state.log_history
            if "loss" in row or "reward" in row
        ],
        "measures": of_run(run, scale, out),
        "early": early(run, scale, out) if run.part == "updates" else [],
    }
    record["seconds"] = {"train": trained - started, "all": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    write_json(folder / "record.json", record)


def mask_of(run: Run, out: Path) -> Mask:
    """What another run changed, or as many weights by :data:`~plan.Against`."""
    start = base_of(out, run.model)
    found = Mask.from_patch(patch_of(out, run.of), start, threads=1)
    if run.mask == "smallest":
        return smallest_weights(start, like=found, threads=1)
    if run.mask == "size":
        return found.random(run.seed, start, by="size", threads=1)
    return found.random(run.seed, by="tensor") if run.mask == "random" else found


def keep_patch(start: Path, folder: Path) -> None:
    """A patch in place of the model, after a check that it gives the model's files."""
    ckptdiff.make(start, folder / "model", folder / "patch", threads=1)
    found = ckptdiff.verify(folder / "patch", base=start, target=folder / "model", threads=1)
    if not found.ok:
        raise SystemExit(f"{folder / 'patch'}: {found.problems[0].message}")
    shutil.rmtree(folder / "model")


def roll_out(model_name: str, scale: Scale, out: Path) -> None:
    """The data sets: exercises, and what the base says to each, sampled at temperature 1."""
    transformers.set_seed(0)
    start, folder = base_of(out, model_name), rollouts_of(out, model_name)
    model = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for task in data.TASKS:
        exercises = data.examples(task, scale.exercises)
        said = base.answers(model, tokenizer, [prompt for prompt, _ in exercises], sample=True)
        rows = [{"prompt": p, "answer": a, "said": s} for (p, a), s in zip(exercises, said, strict=True)]
        write_json(folder / f"{task}.json", rows)
        right = sum(data.reward(row["answer"], row["said"]) for row in rows)
        found[task] = base.accuracy(model, tokenizer, task, scale.tests) | {"sampled": right / len(rows)}
    write_json(folder / "record.json", {"accuracy": found, "parameters": sum(part.numel() for part in model.parameters())})
