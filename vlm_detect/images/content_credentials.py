"""C2PA content credentials: an image's creator, its kind, and its ingredients.

A generated image that was saved by an editor has the generator's manifest as an ingredient; so ingredients are
followed, and their claims are attributed to the version they are about. Nothing is downloaded: a remote manifest is not
read. A signature proves that the manifest was not changed, not that it is true.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from vlm_detect.extras import how_to_install
from vlm_detect.images.claims import DIGITAL_SOURCE, SOURCE_TYPE, Claim, Fact, one_line

_MAX_MANIFESTS = 64
_TRUST = {"Trusted": "signature valid and trusted", "Valid": "signature valid, signer not on a trust list"}


def c2pa_facts(data: bytes) -> Iterator[Fact]:
    if b"c2pa" not in data:  # the label of a manifest store; most files have none and skip the reader
        return
    if find_spec("c2pa") is None:
        yield Fact("C2PA", f"It has content credentials, which cannot be read: {how_to_install('serve')}")
        return
    import c2pa

    settings = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(settings))
        with c2pa.Reader(None, io.BytesIO(data), context=context) as reader:
            store = json.loads(reader.json())
            state = str(reader.get_validation_state() or "unknown")
    except c2pa.C2paError as error:
        if "ManifestNotFound" not in str(type(error).__name__) + str(error):
            yield Fact("C2PA", one_line(f"Content credentials that cannot be read: {error}"))
        return
    manifests = store.get("manifests", {})
    active = manifests.get(store.get("active_manifest"), {})
    issuer = (active.get("signature_info") or {}).get("issuer") or "an unnamed signer"
    trust = _TRUST.get(state, "signature NOT valid")
    yield Fact("C2PA", one_line(f"Made with {_tool(active)}, signed by {issuer}: {trust}"))
    yield from _source_types(manifests, str(store.get("active_manifest")))


def _source_types(manifests: Mapping[str, Any], active: str) -> Iterator[Fact]:
    """The digital source types of the active manifest, then of its ingredients and theirs."""
    waiting, seen = [(active, "")], {active}
    while waiting and len(seen) <= _MAX_MANIFESTS:
        label, relation = waiting.pop(0)
        manifest = manifests.get(label) or {}
        for name in dict.fromkeys(SOURCE_TYPE.findall(json.dumps(manifest.get("assertions", [])))):
            of = f" of {_WHAT.get(relation, 'an ingredient')} (made with {_tool(manifest)})" if relation else ""
            yield Fact("C2PA", one_line(f"Digital source type{of}: {name}"), _claim(name, relation))
        for ingredient in manifest.get("ingredients") or ():
            below = str(ingredient.get("active_manifest"))
            if below in manifests and below not in seen:
                seen.add(below)
                # A part of a part counts like the part.
                inside = relation if relation not in ("", "parentOf") else str(ingredient.get("relationship"))
                waiting.append((below, inside))


_WHAT = {"parentOf": "an earlier version", "componentOf": "a part", "inputTo": "an input"}


def _claim(source_type: str, relation: str) -> Claim | None:
    """An earlier version's claim still applies to the image; a generated part makes it an edited one."""
    claim = DIGITAL_SOURCE.get(source_type)
    if relation in ("", "parentOf"):
        return claim
    return "edited" if relation == "componentOf" and claim in ("generated", "edited") else None


def _tool(manifest: Mapping[str, Any]) -> str:
    names = (entry.get("name") for entry in manifest.get("claim_generator_info") or ())
    return str(manifest.get("claim_generator") or next(names, None) or "an unnamed tool")
