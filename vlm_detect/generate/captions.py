"""Clean captions: keep content only.

A captioner that writes "a blurry photo" makes the generator render a blurry image, and the detector learns style
instead of content. The rules, in this order:

1. a sentence about the picture itself ("The image is sharp.") is removed;
2. an opening that names the medium ("A close-up photo of", "The image shows") is removed, its object is kept;
3. a part between commas with a camera, style or quality term is removed, if another part remains;
4. remaining terms are removed as words.

The original caption is stored with the cleaned one, so nothing is lost.
"""

from __future__ import annotations

import re

# Words for images; "painting" and "drawing" are not included, because a photo may show one.
_MEDIUM = r"(?:image|photo|photograph|picture|snapshot|shot|selfie|scene|view|portrait|close-?up)"
_LOOK = (
    r"(?:close-?up|macro|aerial|wide-?angle|high-?quality|low-?quality|high-?resolution|low-?resolution|black and white"
    r"|black-and-white|monochrome|sepia|colou?r|colou?rful|vintage|stock|blurry|blurred|sharp|detailed|beautiful|stunning"
    r"|professional|realistic|photorealistic|cinematic|candid|grainy|pixelated|digital|small)"
)
_OPENING = re.compile(
    rf"^\s*(?:this is |there is |here is )?(?:an?|the|this)?\s*(?:{_LOOK},?\s+)*(?:{_MEDIUM}\s+)*{_MEDIUM}\s*"
    r"(?:,\s*)?(?:of|with|showing|which shows|that shows|shows|depicts|depicting|features|featuring|captures|capturing"
    r"|displays|presents|contains)\s+",
    re.IGNORECASE,
)
_ABOUT_PICTURE = re.compile(
    r"^\s*(?:the|this)\s+(?:overall\s+)?"
    r"(?:image|photo|photograph|picture|shot|background blur|lighting|focus|quality|composition|style|tone"
    r"|colou?r palette|resolution)(?:'s\s+\w+)?\s+(?:\w+ly\s+)?"
    r"(?:is|are|was|has|have|appears|seems|looks|creates|adds)\b",
    re.IGNORECASE,
)
_ONLY_PICTURE = re.compile(rf"\s*(?:an?|the|this is an?)?\s*(?:{_LOOK},?\s+)*{_MEDIUM}\s*", re.IGNORECASE)
_IN_PICTURE = re.compile(
    rf"\b(?:in|across|throughout)\s+(?:the|this)\s+(?:{_MEDIUM}|frame)\b,?\s*"
    r"|\b(?:(?:looking|staring|facing|posing)\s*)?(?:directly |straight )?(?:at|into|for|towards?) the camera\b",
    re.IGNORECASE,
)
_TERMS = re.compile(
    r"\b(?:"
    # camera
    r"bokeh|(?:shallow |narrow |deep )?depth[- ]of[- ]field|(?:wide|narrow) aperture|f/\d+(?:\.\d+)?|\d+\s?mm(?: lens)?"
    r"|(?:macro|telephoto|fish-?eye|wide-?angle|zoom) lens|dslr|lens flare|long exposure|overexposed|underexposed"
    r"|(?:soft |sharp |in |out of )focus|motion blur|film grain|shot on [\w ]+|taken (?:with|on|by) [\w ]+|tilt-shift"
    # style
    r"|photo-?realis(?:tic|m)|hyper-?realis(?:tic|m)|realistic|cinematic|hdr|instagram|vintage style|retro style"
    r"|black[- ]and[- ]white|monochrome|sepia|grayscale|greyscale|artistic|aesthetic|minimalist|rendering|cgi|3d"
    # quality
    r"|high[- ](?:quality|resolution|definition|contrast)|low[- ](?:quality|resolution|contrast)|best quality"
    r"|masterpiece|ultra[- ]?hd|hd|[248]k|blurry|blurred|grainy|noisy|pixelated|sharp|crisp|highly detailed|compressed"
    r"|watermark(?:ed)?"
    r")\b",
    re.IGNORECASE,
)


def clean_caption(text: str) -> str:
    """The content of a caption; empty if it is only about the picture itself."""
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return " ".join(cleaned for sentence in sentences if (cleaned := _clean_sentence(sentence)))


def _clean_sentence(sentence: str) -> str:
    if _ABOUT_PICTURE.match(sentence):
        return ""
    end = sentence[-1:] if sentence[-1:] in ".!?" else ""
    content = _IN_PICTURE.sub("", _OPENING.sub("", sentence.rstrip(".!?")))
    parts = [part for part in content.split(",") if not _TERMS.search(part)]
    words = _TERMS.sub("", ",".join(parts) if parts else content)
    words = re.sub(r"\s+([,;])", r"\1", " ".join(words.split())).strip(" ,;")
    if not re.search(r"\w{2}", words) or _ONLY_PICTURE.fullmatch(words):
        return ""
    return words[0].upper() + words[1:] + end if sentence[:1].isupper() else words + end
