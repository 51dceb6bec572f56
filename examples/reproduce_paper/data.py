"""Text, tokenizer and tasks: all made on the spot from Python's standard library and a random number generator.

Two tasks with answers that a program checks, one for each data set: ``add`` ("4+7+8+5=" -> "24") and ``sort`` ("sort 5021=" -> "0125").
"""

from __future__ import annotations

import itertools
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

END, PAD = "<|end|>", "<|pad|>"
TASKS = ("add", "sort")
DIGITS = 4
"""Of every exercise: 10,000 there are of each task."""
MAX_ANSWER = 7
"""Tokens: the longest answer, the end, and one to see that a model goes on."""
IGNORED = -100
"""The label of a token that is not to be learned."""
Example = tuple[str, str]
"""A prompt and its right answer."""
Window = tuple[np.ndarray, np.ndarray]
"""Token numbers and labels."""


def library_text(limit: int) -> str:
    """About ``limit`` characters of the standard library's source, spread over its modules, the same each time."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(folder.rglob("*.py")) if not {"site-packages", "test", "tests", "idlelib"} & set(path.parts)]
    parts, size = [], 0
    for k in np.random.default_rng(0).permutation(len(paths)):
        text = paths[k].read_text(encoding="utf-8", errors="replace")
        parts.append(text[:20_000] + END)
        size += len(parts[-1])
        if size >= limit:
            break
    return "".join(parts)


def example(task: str, digits: Sequence[int]) -> Example:
    """One exercise."""
    if task == "add":
        return "+".join(map(str, digits)) + "=", str(sum(digits))
    return f"sort {''.join(map(str, digits))}=", "".join(map(str, sorted(digits)))


def examples(task: str, count: int) -> list[Example]:
    """Exercises for training, without repetition. Those for tests have no prompt in common with them: a hash of the prompt decides."""
    rng, found = np.random.default_rng(TASKS.index(task)), {}
    while len(found) < count:
        prompt, answer = example(task, rng.integers(0, 10, DIGITS).tolist())
        if not is_for_tests(prompt):
            found[prompt] = answer
    return list(found.items())


def held_out(task: str, most: int) -> list[Example]:
    """All exercises for tests, or where these are more, as many of them, evenly spread."""
    every = [example(task, digits) for digits in itertools.product(range(10), repeat=DIGITS)]
    found = [one for one in every if is_for_tests(one[0])]
    return [found[k * len(found) // most] for k in range(most)] if len(found) > most else found


def level(task: str, answer: str) -> int:
    """How hard an exercise is: the tens of a sum, or how many different digits there are to sort."""
    return int(answer) // 10 if task == "add" else len(set(answer))


def is_for_tests(prompt: str) -> bool:
    """One prompt in ten, whatever the seed."""
    return sum(ord(c) * 31**k for k, c in enumerate(prompt)) % 97 < 10


def reward(answer: str, completion: str) -> float:
    """1 for the right answer and nothing else, 0 otherwise."""
    return float(completion.strip() == answer)


def train_tokenizer(text: str, size: int, folder: Path) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, as Llama's; saved in ``folder``."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [text, "sort 0123456789=" * 1000],
        trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False),
    )
    names = ["input_ids", "attention_mask"]
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, padding_side="left", model_input_names=names
    )
    found.save_pretrained(folder)
    return found


def windows(tokenizer: transformers.PreTrainedTokenizerFast, text: str, length: int, seed: int) -> Iterator[Window]:
    """Endless rows of ``length`` token numbers with labels: of eight, two of the library, three of each task's exercises."""
    rng = np.random.default_rng([seed, 7])
    code = np.array(tokenizer(text)["input_ids"])
    for k in itertools.count():
        if k % 4 == 3:
            start = int(rng.integers(0, len(code) - length))
            yield code[start : start + length], code[start : start + length]
        else:
            yield exercise_window(tokenizer, TASKS[k % 2], length, rng)


def exercise_window(tokenizer: transformers.PreTrainedTokenizerFast, task: str, length: int, rng: np.random.Generator) -> Window:
    """One row of exercises, none of those for tests; only the answers are to be learned."""
    tokens: list[int] = []
    labels: list[int] = []
    while len(tokens) < length:
        prompt, answer = example(task, rng.integers(0, 10, DIGITS).tolist())
        if not is_for_tests(prompt):
            asked, answered = tokenizer([prompt, answer + END])["input_ids"]
            tokens += asked + answered
            labels += [IGNORED] * len(asked) + answered
    return np.array(tokens[:length]), np.array(labels[:length])


def preferences(said: list[dict[str, str]]) -> list[dict[str, str]]:
    """Preference pairs of prompts that the base answered wrong: the right answer against what it said."""
    wrong = [row for row in said if not reward(row["answer"], row["said"])]
    return [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": row["said"]} for row in wrong]


def other_words(task: str, prompt: str) -> str:
    """The same exercise in a form that the base has never seen: data out of its distribution."""
    if task == "add":
        return "The sum of " + ", ".join(prompt[:-1].split("+")) + " is "
    return f"In order, {prompt[5:-1]} reads "
