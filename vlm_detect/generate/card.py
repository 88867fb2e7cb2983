"""The dataset card: README.md with the YAML header that `datasets` and the Hub read the splits from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import yaml

from vlm_detect.generate.dataset_files import Packed
from vlm_detect.measures.calibration import MeasureCalibration

_PAIRS = """\
Each row pairs a photo (`image`) with a `twin` that was made from it. Both were decoded to RGB, resized to the same
width and height by the same filter, and written by one encoder with the same parameters, without metadata; a twin of a
JPEG photo was first compressed with the photo's own tables. The remaining difference is content.
"""
_ENDPOINT = """
**Marks of the service.** The generated images come from {url}, where their texts were sent, and for `instruct` twins
and inpainting the photos. Services mark their images: with C2PA metadata, which are removed here, and with watermarks
in the pixels and traces of a lossy compression, which are not and can reveal the label. `vlm-detect audit` probes for
what does not depend on content. The images cannot be reproduced from their receipts, because a server may ignore the
seed.
"""
_PROMPTED = """\
Each row is a photo or an image that was rendered from a prompt (`prompt`). No image is a photo's twin, so they differ
in content; size, shape, compression and encoder match, because each image has those of a photo, which shares its
`group`.
"""
_IMAGES = """\
Each row is an image of a third-party set, with its `label`, `generator` and `object_class`. The pixels are as
published, with every trace of how they were stored: real and generated images may differ in size, compression
and format. `vlm-detect audit` measures how far these leak the label. Metadata were removed. The test split is {test}.
Near-duplicates share a group.
"""

_REASONS = """\
Each reason is a sentence that supports the label of its image, with its evidence: a measurement of the pixels
compared with photos of the same size, the known edit of the image, or an observation of a teacher, confirmed by a
judge. `docs/explanations.md` has the columns and the kinds.
"""


def pair_card(
    packed: Packed,
    *,
    kinds: Mapping[str, int],
    licences: Mapping[str, int],
    captioners: Sequence[str],
    generators: Sequence[str],
    encoder: str,
    endpoint: str | None = None,
) -> str:
    """The card of pairs or, if `packed` counts images, of photos and images rendered from prompts.

    `kinds` and `licences` count pairs; `captioners` is empty for existing captions; `encoder` wrote both members;
    `endpoint` is the URL that rendered them.
    """
    if packed.unit == "images":
        facts = {"Drawn": f"{sum(kinds.values())} images, by {', '.join(generators)}", "Encoder": encoder}
        text = _PROMPTED + _endpoint(endpoint)
        return _card("Photos and images rendered from prompts", "images", packed, text, facts, licences)
    makers = {"Captions by": captioners, "Twins by": generators}
    made = {name: ", ".join(names) for name, names in makers.items() if names}
    facts = {"Twins": _counts(kinds), **made, "Encoder": encoder}
    return _card(
        "Photos and their generated twins", "image-pairs", packed, _PAIRS + _endpoint(endpoint), facts, licences
    )


def _endpoint(url: str | None) -> str:
    return _ENDPOINT.format(url=url) if url else ""


def image_card(
    packed: Packed,
    *,
    labels: Mapping[str, int],
    generators: Mapping[str, int],
    licences: Mapping[str, int],
    published: Sequence[str],
) -> str:
    """`labels`, `generators` and `licences` count images; `published` are the set's original splits."""
    test = "the published one" if "test" in published else "held out here, because the set has none"
    facts = {"Labels": _counts(labels), "Generators": _counts(generators)}
    return _card("Real and generated images", "images", packed, _IMAGES.format(test=test), facts, licences)


def reasons_section(
    images: Mapping[str, int],
    without: Mapping[str, int],
    reasons: Mapping[tuple[str, str, str], int],
    calibration: MeasureCalibration | None,
    teacher: Mapping[str, str],
) -> str:
    """The section on reasons: `images` and those `without` any by label, `reasons` by (source, kind, supports).

    `teacher` has facts of a teacher's step, by name.
    """
    by_source, by_kind = Counter[str](), Counter[str]()
    for (source, kind, _), count in reasons.items():
        by_source[source] += count
        by_kind[kind] += count
    facts = {
        "Images": _counts(images),
        "Without a reason": _counts({label: count for label, count in without.items() if count}),
        "Reasons by source": _counts(by_source),
        "By kind": _counts(by_kind),
    }
    if calibration is not None:
        telling = [
            f"{name} {scale.auroc:.2f} ({scale.ci95[0]:.2f} to {scale.ci95[1]:.2f}), {scale.generated} where generated"
            for name in calibration.informative
            for scale in [calibration.scales[name]]
        ]
        counts = f"{_counts(calibration.images)} images of the training split (`measures.json`)"
        facts["Calibrated on"] = counts
        facts["Measures that separate the labels, by area under the ROC curve"] = "; ".join(telling) or "none"
    listed = "\n".join(f"- {name}: {value}" for name, value in {**facts, **teacher}.items())
    return f"## Reasons\n\n{_REASONS}\n{listed}"


def _card(
    title: str, tag: str, packed: Packed, text: str, facts: Mapping[str, str], licences: Mapping[str, int]
) -> str:
    counts = {"Rejected (`rejects.parquet`)": _counts(packed.rejects), "Licences": _counts(licences)}
    listed = "\n".join(f"- {name}: {value}" for name, value in {**facts, **counts}.items())
    return f"""{_header(title, tag, packed.rows)}

{text}
{_splits(packed)}

{listed}

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


def _splits(packed: Packed) -> str:
    rows = "\n".join(f"| {split} | {count} | {packed.groups[split]} |" for split, count in packed.rows.items())
    return f"""| split | {packed.unit} | groups |
|---|---|---|
{rows}

The unit of splits and of statistics is the `group` (the source photo): what is derived from it is in the same split."""


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(values).most_common()) or "none"
