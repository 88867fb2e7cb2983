"""The dataset card: README.md with the YAML header by which `datasets` and the Hub find the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml


def pair_card(
    *,
    pairs: Mapping[str, int],
    groups: Mapping[str, int],
    kinds: Mapping[str, int],
    rejects: Mapping[str, int],
    licences: Mapping[str, int],
    made: Mapping[str, Any],
) -> str:
    """`pairs` and `groups` count by split, `kinds` and `licences` pairs, `rejects` by reason; `made` says with what."""
    header = {
        "pretty_name": "Photos and their generated twins",
        "license": "other",
        "task_categories": ["image-classification", "visual-question-answering"],
        "tags": ["ai-generated-image-detection", "vlm-detect", "image-pairs"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in pairs],
            }
        ],
    }
    splits = "\n".join(f"| {split} | {count} | {groups[split]} |" for split, count in pairs.items())
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# Photos and their generated twins

Each row pairs a photo (`image`) with a `twin` that was made from it. Both were decoded to RGB, brought to the same
width and height by the same filter, and written by one encoder with the same parameters, without metadata; a twin of a
photo that came as a JPEG was first compressed with the photo's own tables. What is left to tell them apart is content.

| split | pairs | groups |
|---|---|---|
{splits}

The unit of splits and of statistics is the `group` (the source photo): all that descends from one stays in one split.

- Twins: {_counts(kinds)}
- Made by: {", ".join(f"{key} {value}" for key, value in made.items() if value not in (None, ""))}
- Left out (`rejects.parquet`): {_counts(rejects)}
- Licences of the photos: {_counts(licences)}

```python
import datasets

pairs = datasets.load_dataset("THIS_FOLDER")["train"]
```
"""


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(values).most_common()) or "none"
