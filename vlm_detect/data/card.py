"""The dataset card: README.md with the YAML header by which `datasets` and the Hub find the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def pair_card(
    *,
    rows: Mapping[str, int],
    groups: Mapping[str, int],
    kinds: Mapping[str, int],
    rejects: Mapping[str, int],
    licences: Mapping[str, int],
    made: Mapping[str, Any],
) -> str:
    """`rows` and `groups` count by split, `kinds` and `licences` pairs, `rejects` by reason; `made` says with what."""
    return f"""{_header("Photos and their generated twins", "image-pairs", rows)}

Each row pairs a photo (`image`) with a `twin` that was made from it. Both were decoded to RGB, brought to the same
width and height by the same filter, and written by one encoder with the same parameters, without metadata; a twin of a
photo that came as a JPEG was first compressed with the photo's own tables. What is left to tell them apart is content.

{_splits("pairs", rows, groups)}

- Twins: {_counts(kinds)}
- Made by: {", ".join(f"{key} {value}" for key, value in made.items() if value not in (None, ""))}
- Left out (`rejects.parquet`): {_counts(rejects)}
- Licences of the photos: {_counts(licences)}

{_USE}
"""


def prompted_card(
    *,
    rows: Mapping[str, int],
    groups: Mapping[str, int],
    kinds: Mapping[str, int],
    rejects: Mapping[str, int],
    licences: Mapping[str, int],
    made: Mapping[str, Any],
) -> str:
    """Of images that were drawn from prompts, beside photos that they have nothing to do with."""
    return f"""{_header("Photos and images drawn from prompts", "images", rows)}

Each row is a photo or an image that was drawn from a prompt (`source.path_or_id`). No image is a photo's twin, so they
differ in what they show; size, shape, compression and encoder are alike, for each image took those of a photo, which
shares its `group`.

{_splits("images", rows, groups)}

- Made by: {", ".join(f"{key} {value}" for key, value in made.items() if value not in (None, ""))}
- Left out (`rejects.parquet`): {_counts(rejects)}
- Licences of the photos: {_counts(licences)}

{_USE}
"""


def image_card(
    *,
    images: Mapping[str, int],
    groups: Mapping[str, int],
    labels: Mapping[str, int],
    generators: Mapping[str, int],
    rejects: Mapping[str, int],
    licences: Mapping[str, int],
    published: Sequence[str],
) -> str:
    """`images` and `groups` count by split, `labels`, `generators` and `licences` images, `rejects` by reason.

    `published` are the splits that the set came with.
    """
    test = "the published one" if "test" in published else "held out here, for the set came without one"
    return f"""{_header("Real and generated images", "images", images)}

Each row is an image of a set that others made, with its `label`, `generator` and `object_class`. The pixels are as they
were published and carry every trace of how they were stored: real and generated images may differ in size, compression
and format. `vlm-detect audit` tells how far these give the label away. Metadata were removed.

{_splits("images", images, groups)}

The test split is {test}. Near copies share a group.

- Labels: {_counts(labels)}
- Generators: {_counts(generators)}
- Left out (`rejects.parquet`): {_counts(rejects)}
- Licences of the images: {_counts(licences)}

{_USE}
"""


_USE = """```python
import datasets

rows = datasets.load_dataset("THIS_FOLDER")["train"]
```"""


def _header(title: str, tag: str, counts: Mapping[str, int]) -> str:
    header = {
        "pretty_name": title,
        "license": "other",
        "task_categories": ["image-classification", "visual-question-answering"],
        "tags": ["ai-generated-image-detection", "vlm-detect", tag],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in counts],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False).strip()}\n---\n\n# {title}"


def _splits(unit: str, counts: Mapping[str, int], groups: Mapping[str, int]) -> str:
    rows = "\n".join(f"| {split} | {count} | {groups[split]} |" for split, count in counts.items())
    return f"""| split | {unit} | groups |
|---|---|---|
{rows}

The unit of splits and of statistics is the `group` (the source photo): what descends from one stays in one split."""


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(values).most_common()) or "none"
