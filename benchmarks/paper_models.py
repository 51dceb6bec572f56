"""The paper's public pairs of checkpoints, measured, beside the numbers that it states (arXiv 2505.11711, tables 1, 2 and 6).

    python benchmarks/paper_models.py --list
    python benchmarks/paper_models.py tulu-8b-dpo deepseek-math-grpo [--rank all] [--device cuda]
    python benchmarks/paper_models.py --pair tulu-8b-dpo=BASE,TARGET

Fetches the models from the Hugging Face Hub (tens of GB each; gated ones need a token), or takes local copies by ``--pair``. Prints a
table of update sparsity at 1e-5 and by equal values, and of mean rank where the paper has it, with the difference in points; exit code 1 if
one is more than ``--within`` points away, or if tensors of a pair were left out, which it names: numbers of a part are not the model's.
Both sides are cast to BF16 while they are read, as the paper's code does when it loads them.
``paper_models.md`` has the commands one by one, and what is known of the numbers.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import ckptdiff


@dataclass(frozen=True)
class Model:
    """A row of the paper: sparsity in per cent at 1e-5 (table 6, else table 1) and at 1e-8 (table 6), mean rank (table 2)."""

    algorithm: str
    base: str
    target: str
    sparsity: float
    exact: float | None = None
    rank: float | None = None


MODELS = {
    "tulu-8b-dpo": Model("DPO", "allenai/Llama-3.1-Tulu-3-8B-SFT", "allenai/Llama-3.1-Tulu-3-8B-DPO", 81.38, 76.04, 99.8),
    "tulu-70b-dpo": Model("DPO", "allenai/Llama-3.1-Tulu-3-70B-SFT", "allenai/Llama-3.1-Tulu-3-70B-DPO", 95.24, 87.58),
    "deepseek-math-grpo": Model("GRPO", "deepseek-ai/deepseek-math-7b-instruct", "deepseek-ai/deepseek-math-7b-rl", 68.53, 68.14, 99.4),
    "r1-zero": Model("GRPO", "deepseek-ai/DeepSeek-V3-Base", "deepseek-ai/DeepSeek-R1-Zero", 86.0),
    "mistral-orpo-beta": Model("ORPO", "mistralai/Mistral-7B-v0.1", "kaist-ai/mistral-orpo-beta", 76.94, 73.16),
    "mistral-orpo-alpha": Model("ORPO", "mistralai/Mistral-7B-v0.1", "kaist-ai/mistral-orpo-alpha", 53.23, 50.40),
    "eurus-kto": Model("KTO", "openbmb/Eurus-7b-sft", "openbmb/Eurus-7b-kto", 95.98, 71.78),
    "llama3-kto": Model("KTO", "princeton-nlp/Llama-3-Base-8B-SFT", "princeton-nlp/Llama-3-Base-8B-SFT-KTO", 81.2, None, 99.2),
    "math-shepherd-ppo": Model("PPO", "peiyi9979/mistral-7b-sft", "peiyi9979/math-shepherd-mistral-7b-rl", 80.77, 52.45),
    "llama3-simpo": Model("SimPO", "meta-llama/Meta-Llama-3-8B-Instruct", "princeton-nlp/Llama-3-Instruct-8B-SimPO", 76.42, 71.00),
    "llama3-base-simpo": Model("SimPO", "princeton-nlp/Llama-3-Base-8B-SFT", "princeton-nlp/Llama-3-Base-8B-SFT-SimPO", 86.52, 79.47),
    "eurus2-prime": Model("PRIME", "PRIME-RL/Eurus-2-7B-SFT", "PRIME-RL/Eurus-2-7B-PRIME", 77.04, 75.26, 99.5),
}


def left_out(report: ckptdiff.Report) -> list[str]:
    """Which tensors were not compared, one line a reason."""
    reasons = (("that cannot be compared", report.unpaired), ("only in the target", report.added), ("only in the base", report.removed))
    return [
        f"{len(names)} tensors {what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for what, names in reasons
        if names
    ] + ([f"{report.against_zeros} elements in rows that the base has not"] if report.against_zeros else [])


def measure(model: Model, report: ckptdiff.Report) -> list[tuple[str, float, float]]:
    """What, the paper's number, and ours, in per cent."""
    totals = report.totals
    if not totals.elements:
        return []
    rows = [("sparsity at 1e-5", model.sparsity, 100 * totals.within_atol / totals.elements)]
    if model.exact is not None:  # the paper's 1e-8, below which bf16 weights of its models hardly differ
        rows.append(("equal values", model.exact, 100 * totals.equal / totals.elements))
    if model.rank is not None and report.rank is not None:
        rows.append(("mean rank", model.rank, 100 * report.rank.rank_share))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of --list; default all")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--pair", action="append", default=[], metavar="NAME=BASE,TARGET", help="local copies of a row")
    parser.add_argument("--rank", choices=["none", "sample", "all"], default="none")
    parser.add_argument("--device")
    parser.add_argument("--within", type=float, default=0.1, help="points")
    arguments = parser.parse_args()
    if arguments.list:
        for name, model in MODELS.items():
            print(f"{name:20} {model.algorithm:6} {model.base} -> {model.target}")
        return
    wanted = {name: MODELS[name] for name in arguments.names} if arguments.names or arguments.pair else dict(MODELS)
    for text in arguments.pair:
        name, _, paths = text.partition("=")
        row = MODELS[name]
        wanted[name] = Model(row.algorithm, *paths.split(",", 1), row.sparsity, row.exact, row.rank)
    far = 0
    print("| model | | paper, % | found, % | points |\n|---|---|---|---|---|")
    for name, model in wanted.items():
        try:
            report = ckptdiff.report(model.base, model.target, as_dtype="bf16", rank=arguments.rank, nulls=0, device=arguments.device)
        except ckptdiff.CheckpointError as error:
            far += 1
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        for line in left_out(report):
            far += 1
            print(f"{name}: not compared: {line}", file=sys.stderr, flush=True)
        for what, expected, found in measure(model, report):
            far += abs(found - expected) > arguments.within
            print(f"| {name} | {what} | {expected} | {found:.2f} | {found - expected:+.2f} |", flush=True)
    sys.exit(1 if far else 0)


if __name__ == "__main__":
    main()
