"""Finetuning: examples and their questions, LoRA, the Trainer, validation, and the run directory."""

from vlm_detect._moved import add_aliases

add_aliases(__name__)
