"""What a verdict does not show and may not be used for; it stands on every report and case."""

from __future__ import annotations

NOT_FOR = (
    "As proof that an image is generated, or that it is real: a verdict is a lead, and wrong on some images.",
    "To decide about a person (an accusation, a sanction, a publication) without a person who has examined the image "
    "and where it comes from.",
    "To certify an image as authentic: an image of a generator that the model does not know can be called real.",
    "On images unlike those that the run was calibrated on: the rates on this page do not hold for them.",
    "To tell who made an image, with what intent, or who is in it.",
)
LIMITS = (
    "p_fake is an estimate of one model; another one, or another calibration, can come to another verdict.",
    "Editing, scaling, compression, screenshots and text in the image change verdicts.",
    "Reasons are sentences of the model, written under the verdict. Only those marked as confirmed agree with a "
    "measurement of the image; none of them is independent evidence.",
    "An evidence map shows which places the model's verdict depends on, not what is wrong with them.",
    "What a file says of itself (C2PA, EXIF, XMP, texts) is its own claim, can be written and removed by anyone, and "
    "has no part in the verdict.",
)
