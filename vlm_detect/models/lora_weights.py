"""The stored weights of a LoRA, put back under the names that the model itself has for them.

peft renames what it reads by transformers' table of the names in old checkpoints. Of some types (DeepSeek-OCR-2,
Mistral Large 4) a rule of that table fits today's names too: peft then misses weights that it saved itself, and only
warns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights


def set_weights(model: PeftModel, folder: str | Path) -> bool:
    """Copy a stored adapter into the model's; False, and nothing is copied, where its names are not the model's own."""
    stored = load_peft_weights(str(folder), device="cpu")
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    if stored.keys() != own.keys():
        return False
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(stored[name])
    return True
