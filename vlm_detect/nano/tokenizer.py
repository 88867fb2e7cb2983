"""The nano moondream's tokenizer: byte-level BPE of about 1,300 entries with the official special ids 0 to 9.

The names of the special tokens are those of ``moondream/starmie-v1``. Every byte is an entry, so any text encodes; the
words are learned from the captions, the questions and a page of English (``english.txt``), whose first lines
are the words of the official prompt templates. In starmie those have other ids, so the templates are built here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|md_reserved_0|>",  # opens a prompt
    "<|md_reserved_1|>",  # closes the name of the task
    "<|md_reserved_2|>",  # the answer begins
    "<|md_reserved_3|>",  # the thinking begins
    "<|coord|>",
    "<|size|>",
    "<|start_ground_points|>",
    "<|md_reserved_4|>",  # this project's placeholder for an image embedding
    "<|end_ground|>",
)
ENGLISH = Path(__file__).with_name("english.txt")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE from ``texts`` and the English page, of at most ``vocabulary`` entries."""
    english = ENGLISH.read_text(encoding="utf-8").splitlines()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The page is repeated, its first lines most often, so that each of their words becomes one entry.
    bpe.train_from_iterator([*texts, *english * 20, *english[:7] * 2000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[0],
        model_max_length=512,
    )


def prompt_templates(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The official templates of 2025-06-21 with this vocabulary's ids for their words."""

    def words(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    lengths = {length: [1, *words("describe"), 2, *words(length), 3] for length in ("short", "normal", "long")}
    prefixes = {task: {"prefix": [1, *words(name), 2], "suffix": [3]} for task, name in TASK_WORDS.items()}
    return {"caption": lengths, **prefixes}


TASK_WORDS = {"query": "query", "detect": "detect all", "point": "point"}
