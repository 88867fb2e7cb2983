"""Detect texts written by image generators: a name in a field for programs, or settings in any field.

    names_generator("Adobe Firefly 2.0")                     # in a field for the program: True
    names_generator("Solar Flux Viewer")                     # False
    states_settings("a dog\\nSteps: 20, Sampler: Euler a")    # in any field: True
    states_settings("A firefly on a leaf")                   # False

A word like firefly, flux or gemini is ambiguous. A name counts only at the beginning of a field that software writes;
settings count anywhere, in the forms written by generators' front ends.
"""

from __future__ import annotations

import re

from vlm_detect.images.claims import Claim

_VENDOR = (
    r"(?:(?:adobe|amazon|bing|black forest labs|bytedance|google(?: ai)?|meta|microsoft|openai|stability(?:\.ai| ai)?)"
    r"[ /:_-]+)"
)
# Coined names, unambiguous.
_COINED = (
    r"stable[ _-]?diffusion|sdxl|sd ?3(?:\.5)?|midjourney|dall[·.\- ]e|dalle[ -]?[23]|comfyui|invoke ?ai|novelai|"
    r"automatic1111|fooocus|dreamstudio|diffusionbee|draw things|easy diffusion|(?:stable)?swarmui|leonardo\.ai|"
    r"ideogram\.ai|nightcafe|craiyon|chatgpt|gpt-?4o|gpt-image|nano[ -]?banana|dreamina|seedream|qwen-image|"
    r"hunyuanimage|tensor\.art|mage\.space|bluewillow|artbreeder|bing image creator|image creator from designer|"
    r"(?:apple )?image playground"
)
# Ambiguous words, only with their vendor, version or kind.
_ORDINARY = (
    r"adobe firefly|google imagen|google gemini|openai sora|imagen(?=[ -]?[2-9])|"
    r"gemini(?=[ -]\d(?:\.\d)?[ -](?:flash|pro))|"
    r"flux\.[12]|flux(?=[ \-](?:1[ .]?)?\[?(?:dev|pro|schnell|kontext|ultra)\b)|ideogram(?= ?\d)|playground (?:ai|v\d)|"
    r"recraft(?= ?(?:$|v?\d|ai))|krea(?= ?(?:$|ai))|grok(?=[ -]?(?:\d|image|imagine))"
)
_NAME = re.compile(rf"\s*(?:{_ORDINARY}|{_VENDOR}?(?:{_COINED}|{_ORDINARY}))(?![a-z])", re.IGNORECASE)
_MADE_WITH = re.compile(
    rf"\s*(?P<verb>made|generated|created|imagined|edited)\s+(?:with|by|using|in)\s+{_VENDOR}?"
    rf"(?:(?:ai|artificial intelligence)\W*$|(?:{_COINED}|{_ORDINARY})(?![a-z]))",
    re.IGNORECASE,
)
_SETTINGS = re.compile(
    r"\bSteps: \d+, (?:[^\n]*, )?(?:Sampler|CFG scale|Seed): ?\S"  # AUTOMATIC1111 and compatible programs
    r"|\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-"  # Midjourney
    r"|(?:^|\s)-s ?\d+ .*-S ?\d+ .*-C ?\d"  # early InvokeAI
    r'|"AIGC"\s*:\s*\{[^{}]*"Label"\s*:\s*"1"',  # the label of China's standard GB 45438
)
_PREFIX = re.compile(r"\s*(?:prompt|workflow|parameters|extra_data)\s*:\s*(?=\{)", re.IGNORECASE)
_GRAPH = re.compile(r'"class_type"\s*:\s*"|"nodes"\s*:\s*\[|"last_node_id"\s*:')  # ComfyUI's
_KEYS = {
    "prompt": r"(?:positive_?|negative_?)?prompt|uc",
    "steps": r"(?:num_inference_)?steps",
    "sampler": r"sampler(?:_?name)?|scheduler",
    "seed": r"(?:noise_?)?seed",
    "guidance": r"(?:cfg|guidance)(?:_?scale)?|scale",
}
_JSON_KEYS = {name: re.compile(rf'"(?:{pattern})"\s*:', re.IGNORECASE) for name, pattern in _KEYS.items()}
_READ = 1 << 16  # searched prefix, in characters


def names_generator(text: str) -> bool:
    """Whether the name of a program, a device or a source is that of a generator."""
    return _NAME.match(text) is not None


def made_with(text: str) -> Claim | None:
    """The claim of a credit such as "Made with Google AI"."""
    if found := _MADE_WITH.match(text):
        return "edited" if found["verb"].lower() == "edited" else "generated"
    return "generated" if (name := _NAME.match(text)) and not text[name.end() :].strip(r" .\d") else None


def states_settings(text: str) -> bool:
    """Whether a text contains a generator's settings or node graph."""
    text = text[:_READ]
    if _SETTINGS.search(text):
        return True
    if not (_PREFIX.match(text) or text.lstrip().startswith(("{", "["))):
        return False
    return _GRAPH.search(text) is not None or sum(key.search(text) is not None for key in _JSON_KEYS.values()) >= 3
