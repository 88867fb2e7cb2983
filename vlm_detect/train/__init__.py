"""Finetuning: examples and their questions, LoRA, the Trainer, validation, and what a run leaves behind."""
