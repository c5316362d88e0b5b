"""Tiny random models of several families, and folders that hold them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)  # on a busy machine the threads of such small products mostly wait

LAYERS, HEADS, KV_HEADS, DIM = 3, 4, 2, 16

COMMON = {
    "vocab_size": 300,
    "hidden_size": HEADS * DIM,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": DIM,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # keys far from zero, attention far from even
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

SLIDING = {"sliding_window": 24}
FAMILIES = {
    "llama": {},
    "qwen3": {},  # norms keys before it rotates them
    "olmo2": {},  # norms all heads at once
    "cohere": {},  # interleaved layout
    "glm": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "phi": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "stablelm": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    },
    "phi3": {},  # one projection for queries, keys and values
    "granite": {"attention_multiplier": 0.3},
    "mistral": SLIDING,
    "gemma3_text": SLIDING
    | {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 9,
    },
}


def config(family="llama", **changes):
    """The config of a tiny model of `family`."""
    return AutoConfig.for_model(family, **COMMON | FAMILIES.get(family, {}) | changes)


def build(family="llama", seed=0, **changes):
    """The model itself, random, as `dump` makes it from the config alone."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(family, **changes), dtype=torch.float32).eval()


def save_config(folder: Path, family="llama", **changes):
    """A folder with a config only, for random weights."""
    config(family, **changes).save_pretrained(folder)
    return folder


def save_model(folder: Path, family="llama", **changes):
    """A folder with weights and a tokenizer, whose tokens are bytes."""
    build(family, **changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer(**arguments):
    """A tokenizer whose tokens are bytes."""
    alphabet = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(alphabet, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **arguments)


def token_ids(count, seed=0):
    """Random tokens (1, count)."""
    return torch.randint(0, 256, (1, count), generator=torch.Generator().manual_seed(seed))
