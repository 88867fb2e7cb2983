"""The VQA benchmark: items, prompts, scoring, figures with their intervals and floors, and the report."""
