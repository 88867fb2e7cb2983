"""The columns of a dataset on disk, as `datasets.Features`: pairs, single images, prompted images and rejects.

They are contracts (`docs/design.md`); this is their only definition in the package.
"""

from __future__ import annotations

from datasets import Features, Image, List, Value

SOURCE_FEATURES = {
    "path_or_id": Value("string"),
    "sha256": Value("string"),
    "phash": Value("string"),  # 64-bit perceptual hash, hexadecimal: near copies differ in few bits
    "format": Value("string"),
    "jpeg_quality": Value("int32"),
    "width": Value("int32"),
    "height": Value("int32"),
    "licence": Value("string"),
}

EDIT_FEATURES = {
    "of": Value("string"),  # the edited image: "photo", or a twin of the same photo by its kind
    "operation": Value("string"),
    "box": List(Value("int32")),  # x0, y0, x1, y1 in pixels; x1 and y1 are exclusive
    "strength": Value("float32"),  # mean absolute change within the box, of the full range
    "donor": Value("string"),  # for a splice: the other photo, by the first 16 digits of its SHA-256
    "attempt": Value("int32"),  # number of the sample for this seed, from 0: earlier ones were too weak or too strong
}

RECEIPT_FEATURES = {
    "captioner": Value("string"),
    "captioner_revision": Value("string"),
    "generator_revision": Value("string"),
    "steps": Value("int32"),
    "guidance": Value("float32"),
    "scheduler": Value("string"),
    "dtype": Value("string"),
    "quantization": Value("string"),
    "batch": Value("string"),
    "encode": Value("string"),
}

REASON_FEATURES = {
    "text": Value("string"),
    "kind": Value("string"),
    "supports": Value("string"),
    "box": List(Value("int32")),  # as for an edit, in pixels of the stored image
    "source": Value("string"),
    "value": Value("float64"),
    "percentile": Value("float32"),
    "margin": Value("float32"),
    "checked_by": Value("string"),
}
# The columns that `add-reasons` adds to each kind of dataset: for each image column, that of its reasons.
REASON_COLUMNS = {"images": {"image": "reasons"}, "pairs": {"image": "image_reasons", "twin": "twin_reasons"}}

# One row per (photo, twin).
PAIR_FEATURES = Features(
    {
        "pair_id": Value("string"),
        "group": Value("string"),  # the source photo: the unit of splits and of statistics
        "image": Image(),
        "image_label": Value("string"),
        "twin": Image(),
        "kind": Value("string"),
        "generator": Value("string"),
        "caption": Value("string"),
        "prompt": Value("string"),
        "seed": Value("int64"),
        "edit": EDIT_FEATURES,
        "source": SOURCE_FEATURES,
        "receipt": RECEIPT_FEATURES,
    }
)

# One row per image, for imported datasets.
IMAGE_FEATURES = Features(
    {
        "image": Image(),
        "label": Value("string"),
        "generator": Value("string"),
        "object_class": Value("string"),
        "group": Value("string"),
        "source": SOURCE_FEATURES,
    }
)

# The same for images rendered from prompts and photos: a generated image can be rendered again by its id.
PROMPTED_FEATURES = Features(
    {
        "id": Value("string"),
        **IMAGE_FEATURES,
        "prompt": Value("string"),
        "seed": Value("int64"),
        "receipt": RECEIPT_FEATURES,
    }
)

REJECT_FEATURES = Features(
    {"id": Value("string"), "stage": Value("string"), "reason": Value("string"), "detail": Value("string")}
)
