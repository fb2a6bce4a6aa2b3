"""Tiny models in folders as transformers writes them, with tokenizers trained here."""

import json
from pathlib import Path
from typing import Any

import torch
from tests.families.round_trips import save_theirs
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

START, END = "<s>", "<|end|>"
TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "敏捷的棕色狐狸跳过了懒狗。 😀🎉 naïve café",
    "def main(): return [number ** 2 for number in range(100)]",
] * 3
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[{{ message['content'] | trim }}]\n{% else %}"
    "{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n{% endif %}{% endfor %}\n"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_level(vocab_size: int = 384, *, starts: bool = True) -> Tokenizer:
    """As GPT-2's and Llama 3's: tokens are strings of bytes, which end anywhere in a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if starts:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 0)])
    return tokenizer


def byte_fallback(vocab_size: int = 384) -> Tokenizer:
    """As Llama 2's and Mixtral's: spaces are ▁, what is no token falls back to bytes, each a token `<0x..>`."""
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 256, special_tokens=["<unk>", START, END], show_progress=False
    )
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=[a-z])(?=▁)"), "isolated")
    learner.train_from_iterator([line for line in TEXT if line.isascii()], trainer)
    learned = json.loads(learner.to_str())["model"]
    words = ["<unk>", START, END, *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [word for word in learned["vocab"] if word not in words]
    merges = [(pair[0], pair[1]) for pair in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: id_ for id_, word in enumerate(words)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", START, END])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 1)])
    return tokenizer


TOKENIZERS = {"byte_level": byte_level, "byte_fallback": byte_fallback}


def save_tokenizer(tokenizer: Tokenizer, folder: Path, template: str | None = TEMPLATE) -> Any:
    """Writes the tokenizer as transformers does, and gives theirs."""
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END)
    theirs.chat_template = template
    theirs.save_pretrained(folder)
    return theirs


def llama(folder: Path, vocab_size: int = 384, **settings: Any) -> Any:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(**_settings(vocab_size) | settings)
    model = LlamaForCausalLM(config)
    save_theirs(model, folder)
    return model


def mixtral(folder: Path, vocab_size: int = 384) -> Any:
    """A Mixtral of random weights that never finds one of `byte_fallback`'s bytes the most probable token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(1)
    model = MixtralForCausalLM(
        MixtralConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **_settings(vocab_size))
    )
    save_theirs(model, folder)
    with torch.no_grad():
        model.lm_head.weight[3:259] = 0
    model.save_pretrained(folder)
    return model


def _settings(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": None,
    }
