"""The VQA benchmark: items, prompts, scoring, metrics with intervals and blind baselines, and the report."""
