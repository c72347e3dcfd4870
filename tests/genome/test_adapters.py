"""Adapters against PEFT: base plus task vector is what PEFT itself merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from cqd_hub.genome.adapters import AdapterExpert, open_adapter
from cqd_hub.genome.experts import Base, FullExpert, LowRank
from cqd_hub.genome.opening import open_base
from cqd_hub.genome.vocabulary import Vocabulary
from tests.genome.tiny_models import edit_tensors

pytestmark = pytest.mark.filterwarnings("ignore")
VOCABULARY = 40
COMMON = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = COMMON | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


def _llama(tied: bool, **options: Any) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**(LLAMA | options), tie_word_embeddings=tied)
    )


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**COMMON, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


def _neox() -> Any:
    shape = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shape))


def _mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**LLAMA, num_local_experts=3, num_experts_per_tok=2)
    )


def _whisper() -> Any:
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **COMMON,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_mel_bins=6,
            max_source_positions=10,
            max_target_positions=12,
            decoder_start_token_id=1,
        )
    )


def _vit() -> Any:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
        )
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: _llama(False),
    "tied": lambda: _llama(True),
    "biases": lambda: _llama(False, attention_bias=True, mlp_bias=True),
    "gpt2": _gpt2,
    "neox": _neox,
    "mixtral": _mixtral,
    "whisper": _whisper,
    "vit": _vit,
}
CLASSES = {"whisper": "WhisperForConditionalGeneration", "vit": "ViTForImageClassification"}
Bases = Callable[[str], Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Make (once) the tiny random base of a name."""
    folder = tmp_path_factory.mktemp("bases")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            torch.manual_seed(0)
            model = MAKERS[name]()
            for parameter in model.parameters():
                parameter.data = 0.3 * torch.randn_like(parameter)
            model.save_pretrained(folder / name)
        return folder / name

    return make


def load(base: Path) -> Any:
    kind = getattr(transformers, CLASSES.get(base.name, "AutoModelForCausalLM"))
    return kind.from_pretrained(base).eval()


def train(base: Path, folder: Path, config: Any, *, rows: int | None = None) -> Any:
    """Save an adapter whose trainable parameters were all moved; return the adapted model."""
    torch.manual_seed(1)
    model = load(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(model, config)
    done = set()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            moves = parameter.requires_grad or ".lora_" in name
            if moves and parameter.data_ptr() not in done:
                done.add(parameter.data_ptr())  # tied factors are views of one storage
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder)
    return adapted.eval()


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"]} | options))


def opened(base: Path, adapter: Path, notes: list[str] | None = None) -> Any:
    note = (lambda line: None) if notes is None else notes.append
    return open_adapter(open_base(base), adapter, cache=adapter.parent / "cache", note=note)


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """In-memory name → float64 weight of PEFT's merged model."""
    model = PeftModel.from_pretrained(load(base), str(adapter)).double()
    return dict(model.merge_and_unload(safe_merge=True).named_parameters())


def dense(delta: LowRank | torch.Tensor | None) -> torch.Tensor | float:
    if delta is None:
        return 0.0
    return delta.up @ delta.down if isinstance(delta, LowRank) else delta


def forms(expert: AdapterExpert) -> dict[str, str]:
    found = {slot.name: expert.form(slot) for slot in expert.base.slots}
    return {name: form for name, form in found.items() if form is not None}


def check(expert: Any, wanted: dict[str, torch.Tensor], *, tolerance: float = 2e-6) -> None:
    """Compare base + τ and the expert's own weights with *wanted* in every slot."""
    seen = set()
    for parameter, tensor in wanted.items():
        slot = expert.base.slot_of(parameter) or expert.base.slot_of(f"{parameter}[0]")
        assert slot is not None, parameter
        seen.add(slot.name)
        tensor = tensor.detach().reshape(slot.shape)
        delta = expert.task_vector(slot)
        kind = {LowRank: "factors", torch.Tensor: "dense", type(None): None}[type(delta)]
        assert kind == expert.form(slot)
        base = expert.base.weight(slot).double()
        for own in (base + dense(delta), expert.weight(slot).double()):
            torch.testing.assert_close(own, tensor.double(), atol=tolerance, rtol=tolerance)
        if delta is None:
            assert torch.equal(tensor.double(), base)
    assert seen == {slot.name for slot in expert.base.slots}


NATIVE: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "linear": ("llama", {"target_modules": "all-linear"}, {"factors"}),
    "head": ("llama", {"target_modules": ["lm_head", "up_proj"]}, {"factors"}),
    "patterns": (
        "llama",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, "^model.layers.1.mlp.up_proj": 5, "^up_proj": 7},
            "alpha_pattern": {r"layers\.0\.self_attn\.(q|k)_proj": 9, "k_proj": 2, "proj": 11},
            "use_rslora": True,
        },
        {"factors"},
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, {"factors"}),
    "embedding whole": (
        "llama",
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"factors", "dense"},
    ),
    "norms": (
        "llama",
        {"modules_to_save": ["input_layernorm", "model.norm"]},
        {"factors", "dense"},
    ),
    "whole block": ("llama", {"modules_to_save": ["mlp"]}, {"factors", "dense"}),
    "tokens": ("llama", {"trainable_token_indices": [3, 17, 5]}, {"factors"}),
    "tokens of both": (
        "llama",
        {"trainable_token_indices": {"embed_tokens": [4], "lm_head": [6, 1]}},
        {"factors"},
    ),
    "tied tokens": ("tied", {"trainable_token_indices": [3, 17]}, {"factors"}),
    "tied whole": (
        "tied",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"factors", "dense"},
    ),
    "lora_bias": (
        "biases",
        {"target_modules": ["q_proj", "up_proj"], "lora_bias": True, "alpha_pattern": {"up": 3}},
        {"factors", "dense"},
    ),
    "biases": ("biases", {"bias": "all"}, {"factors", "dense"}),
    "their biases": ("biases", {"bias": "lora_only"}, {"factors", "dense"}),
    "biases and modules": (
        "biases",
        {"bias": "all", "modules_to_save": ["down_proj"]},
        {"factors", "dense"},
    ),
    "dora": ("llama", {"target_modules": "all-linear", "use_dora": True}, {"dense"}),
    "embedding dora": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}, {"dense"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc", "c_proj"]}, {"factors"}),
    "conv1d dora": ("gpt2", {"target_modules": ["c_attn"], "use_dora": True}, {"dense"}),
    "conv1d biases": (
        "gpt2",
        {"target_modules": ["c_attn", "wpe"], "bias": "all"},
        {"factors", "dense"},
    ),
    "neox": ("neox", {"target_modules": ["query_key_value", "embed_out"]}, {"factors"}),
    "convolution": ("whisper", {"target_modules": ["conv1", "conv2", "q_proj"]}, {"factors"}),
    "convolution dora": ("whisper", {"target_modules": ["conv2"], "use_dora": True}, {"dense"}),
    "convolution 2d": (
        "vit",
        {"target_modules": ["projection"], "lora_bias": True},
        {"factors", "dense"},
    ),
    "mica": ("llama", {"init_lora_weights": "mica"}, {"factors"}),
    "orthogonal": ("llama", {"r": 4, "init_lora_weights": "orthogonal"}, {"factors"}),
}


@pytest.mark.parametrize("case", NATIVE)
def test_native(case: str, bases: Bases, tmp_path: Path) -> None:
    name, options, kinds = NATIVE[case]
    train(bases(name), tmp_path / "adapter", lora(**options))
    notes: list[str] = []
    expert = opened(bases(name), tmp_path / "adapter", notes)
    assert isinstance(expert, AdapterExpert)
    assert set(forms(expert).values()) == kinds
    assert notes == []
    check(expert, merged(bases(name), tmp_path / "adapter"))


def test_older_spellings(bases: Bases, tmp_path: Path) -> None:
    """Names that hold the adapter's name, or the wrapper's, mean the same."""
    base, adapter = bases("biases"), tmp_path / "adapter"
    options = {"modules_to_save": ["lm_head"], "bias": "lora_only", "use_dora": True}
    train(base, adapter, lora(**options))
    wanted = merged(base, adapter)

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {}
        for name, tensor in tensors.items():
            name = name.replace(".lora_A.", ".lora_A.default.").replace(".base_layer.", ".")
            name = name.replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight")
            renamed[name.replace("lm_head.", "lm_head.modules_to_save.")] = tensor
        frozen = torch.zeros(VOCABULARY, 16)
        return renamed | {"base_model.model.lm_head.original_module.weight": frozen}

    edit_tensors(adapter / "adapter_model.safetensors", rename)
    check(opened(base, adapter), wanted)


def test_older_names_of_a_mixture(bases: Bases, tmp_path: Path) -> None:
    """An adapter of single experts fits a base that stores them singly."""
    base, adapter = bases("mixtral"), tmp_path / "adapter"
    train(base, adapter, lora(target_modules=["q_proj"], alpha_pattern={"w2": 7}))
    module = "model.layers.1.block_sparse_moe.experts.2.w2"
    down, up = torch.randn(3, 24), torch.randn(16, 3)
    names = {"lora_A": down, "lora_B": up}
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: (
            tensors | {f"base_model.model.{module}.{n}.weight": t for n, t in names.items()}
        ),
    )
    expert = opened(base, adapter)
    slot = expert.base.slot_of(f"{module}.weight")
    torch.testing.assert_close(dense(expert.task_vector(slot)), up @ down * 7 / 3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [VOCABULARY + 3, VOCABULARY - 4])
def test_resized_vocabulary(tied: bool, rows: int, bases: Bases, tmp_path: Path) -> None:
    """Saved whole; lacking rows are the base's, surplus ones are cut or carried by the base."""
    base, adapter = bases("tied" if tied else "llama"), tmp_path / "adapter"
    config = lora(base_model_name_or_path=str(base))
    model = train(base, adapter, config, rows=rows).merge_and_unload()
    names = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tied)
    expert = opened(base, adapter)
    for name in names:
        slot = expert.base.slot_of(name)
        own, wanted = expert.base.weight(slot).clone(), model.get_parameter(name).detach()
        assert expert.form(slot) == "dense"
        assert expert.rows(slot) == rows
        assert torch.equal(expert.stored_rows(slot), wanted)
        shared = min(rows, VOCABULARY)
        delta = torch.zeros_like(own)
        delta[:shared] = wanted[:shared] - own[:shared]
        assert torch.equal(expert.task_vector(slot), delta)
        own[:shared] = wanted[:shared]
        assert torch.equal(expert.weight(slot), own)


def test_extended_base(bases: Bases, tmp_path: Path) -> None:
    """An adapter of the plain vocabulary, on a base grown for another expert."""
    base = bases("llama")
    options = {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}
    train(base, tmp_path / "adapter", lora(**options))
    train(base, tmp_path / "plain", lora(target_modules=["embed_tokens", "lm_head"]))
    ends = frozenset(("model.embed_tokens.weight", "lm_head.weight"))
    for folder in ("adapter", "plain"):
        expert = opened(base, tmp_path / folder)
        grown = Base(expert.base.stored, Vocabulary(VOCABULARY + 2, ends, base))
        longer = AdapterExpert(grown, expert.checkpoint)
        for name in ends:
            short, long = expert.base.slot_of(name), grown.slot_of(name)
            assert long.shape[0] == VOCABULARY + 2
            delta = dense(longer.task_vector(long))
            assert torch.equal(delta[:-2], dense(expert.task_vector(short)))
            assert not delta[-2:].any()
            assert torch.equal(longer.weight(long)[:-2], expert.weight(short))


def test_lora_of_both_tied_ends(bases: Bases, tmp_path: Path) -> None:
    """Tied factors count once, as in the adapted model (PEFT's merge adds them twice)."""
    base, adapter = bases("tied"), tmp_path / "adapter"
    config = lora(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    adapted = train(base, adapter, config)
    expert = opened(base, adapter)
    slot = expert.base.slot_of("model.embed_tokens.weight")
    assert expert.form(slot) == "factors"
    model = load(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(expert.weight(expert.base.slot_of(name)))
        ids = torch.arange(3, 15).unsqueeze(0)
        torch.testing.assert_close(model(ids).logits, adapted(ids).logits, atol=2e-5, rtol=2e-5)


def test_untouched_and_half_precision(bases: Bases, tmp_path: Path) -> None:
    base, adapter = bases("llama"), tmp_path / "adapter"
    train(base, adapter, lora(modules_to_save=["lm_head"]))
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()},
    )
    expert = opened(base, adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    head = expert.base.slot_of("lm_head.weight")
    assert torch.equal(expert.weight(head), stored["base_model.model.lm_head.weight"])
    query = expert.base.slot_of("model.layers.0.self_attn.q_proj.weight")
    assert {part.dtype for part in expert.task_vector(query)} == {torch.float32}
    norm = expert.base.slot_of("model.norm.weight")
    assert expert.form(norm) is None
    assert expert.task_vector(norm) is None
    assert torch.equal(expert.weight(norm), expert.base.weight(norm))
    assert expert.path == adapter


TARGETS = {"target_modules": ["q_proj", "up_proj"]}
FOLDED: dict[str, tuple[str, Any]] = {
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, alpha=3, **TARGETS)),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=2, alpha=3, **TARGETS)),
    "adalora": ("llama", lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, **TARGETS)),
    "ia3": (
        "llama",
        lambda: peft.IA3Config(
            target_modules=["k_proj", "up_proj"], feedforward_modules=["up_proj"]
        ),
    ),
    "vera": ("llama", lambda: peft.VeraConfig(r=4, target_modules=["q_proj"])),
    "oft": ("llama", lambda: peft.OFTConfig(oft_block_size=4, **TARGETS)),
    "boft": ("llama", lambda: peft.BOFTConfig(boft_block_size=4, **TARGETS)),
    "hra": ("llama", lambda: peft.HRAConfig(r=2, **TARGETS)),
    "fourierft": ("llama", lambda: peft.FourierFTConfig(n_frequency=20, **TARGETS)),
    "randlora": ("llama", lambda: peft.RandLoraConfig(r=4, target_modules=["q_proj"])),
    "miss": ("llama", lambda: peft.MissConfig(r=4, **TARGETS)),
    "hira": ("llama", lambda: peft.HiraConfig(r=2, **TARGETS)),
    "road": ("llama", lambda: peft.RoadConfig(group_size=8, **TARGETS)),
    "norms": ("llama", lambda: peft.LNTuningConfig(target_modules=["input_layernorm"])),
    "tied tokens": ("tied", lambda: peft.TrainableTokensConfig(token_indices=[3, 9])),
    "loha with modules": (
        "tied",
        lambda: peft.LoHaConfig(r=2, modules_to_save=["norm"], **TARGETS),
    ),
    "conv1d": ("gpt2", lambda: peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[])),
    "pissa": ("llama", lambda: lora(init_lora_weights="pissa")),
    "olora": ("tied", lambda: lora(init_lora_weights="olora")),
    "kasa": ("llama", lambda: lora(kasa_config=peft.KasaConfig())),
    "experts": (
        "mixtral",
        lambda: lora(target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
    ),
    "stacked module": ("mixtral", lambda: lora(modules_to_save=["experts"])),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folded(case: str, bases: Bases, tmp_path: Path) -> None:
    name, config = FOLDED[case]
    adapted = train(bases(name), tmp_path / "adapter", config())
    notes: list[str] = []
    expert = opened(bases(name), tmp_path / "adapter", notes)
    assert isinstance(expert, FullExpert)
    assert len(notes) == 1
    assert "PEFT merges it" in notes[0]
    model = load(bases(name))
    wanted = PeftModel.from_pretrained(load(bases(name)), str(tmp_path / "adapter")).eval()
    ids = torch.arange(3, 15).unsqueeze(0)
    with torch.no_grad():
        logits, other = adapted(ids).logits, wanted(ids).logits
        torch.testing.assert_close(logits, other)
        merged_model = load(expert.stored.checkpoint.path)
        torch.testing.assert_close(merged_model(ids).logits, logits, atol=1e-5, rtol=1e-5)
        assert (model(ids).logits - logits).abs().max() > 1e-3
    moved = sum(bool(expert.task_vector(slot).any()) for slot in expert.base.slots)
    assert 0 < moved < len(expert.base.slots)
    again: list[str] = []
    assert opened(bases(name), tmp_path / "adapter", again).content_hash == expert.content_hash
    assert again == []
