"""The nano SD 3.5's three text encoders and their tokenizers, in the real classes, for the captions' vocabulary.

Two CLIP encoders and a T5, as in SD 3.5: the CLIPs' pooled vectors modulate every layer, their token vectors
and T5's are read by the joint attention. The tokenizers are made from the captions, so that a sentence is a dozen
tokens; CLIP's also has every byte, while T5's, as in the original, encodes unknown text as ``<unk>``.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

END_OF_WORD = "</w>"


def train_clip_tokenizer(captions: Iterable[str], max_length: int) -> CLIPTokenizer:
    """Byte-level BPE with CLIP's vocabulary order: bytes, bytes that end a word, merges, the two special tokens."""
    shape = CLIPTokenizer()  # has CLIP's normalizer and pre-tokenizer, so that training splits words as inference does
    bpe = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    bpe.normalizer = shape.backend_tokenizer.normalizer
    bpe.pre_tokenizer = shape.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix=END_OF_WORD, show_progress=False)
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def train_t5_tokenizer(captions: Iterable[str], max_length: int) -> T5Tokenizer:
    """A unigram vocabulary in T5's layout: ``<pad>``, ``</s>``, ``<unk>``, then pieces with their log-probabilities.

    Every word of the captions is a piece: with so few words, training by pruning would split the common ones.
    """
    counts = Counter(word for text in captions for word in re.findall(r"\w+", text))
    total = counts.total()
    words = [(f"▁{word}", math.log(count / total)) for word, count in sorted(counts.items())]
    letters = [(letter, -20.0) for letter in ("▁", *string.ascii_letters, *string.digits, *string.punctuation)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *words, *letters], extra_ids=0, model_max_length=max_length)


def build_clip(tokenizer: CLIPTokenizer, width: int, layers: int, hidden_act: str) -> CLIPTextModelWithProjection:
    """``width`` is the width of the tokens and of the pooled vector."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act=hidden_act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_t5(tokenizer: T5Tokenizer, width: int, layers: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=32,
        num_heads=width // 32,
        d_ff=2 * width,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
        relative_attention_max_distance=tokenizer.model_max_length,
        relative_attention_num_buckets=16,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)
