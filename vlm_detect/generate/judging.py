"""Judge candidate sentences: keep or reject them, and write the reasons as rows of a shard.

    judging = Judging(asked, min_margin=1.0, checked_by="a-model", source="teacher")
    rows = judging.rows([([photo, twin], sighting), ...], rejects)       # records of measure_step.SENTENCE_FEATURES

Each sentence is about one image of its item; the other one, if any, is its counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_detect.data.members import Member
from vlm_detect.generate.asked_models import Asked
from vlm_detect.generate.judge import Judgement, Statement, judge
from vlm_detect.generate.sightings import Sighting, box_in_pixels
from vlm_detect.places import place_of
from vlm_detect.records import Reason, ReasonSource, Reject

Claimed = tuple[Sequence[Member], Sighting]  # a photo and its twin, or one image, and a sentence about one of them


@dataclass(frozen=True, eq=False)
class Judging:
    """Without a judge (`asked` is None) every sentence is kept as unchecked."""

    asked: Asked | None
    min_margin: float
    checked_by: str
    source: ReasonSource  # also the stage of the rejects

    def rows(self, claims: Sequence[Claimed], rejects: list[Reject]) -> list[dict[str, Any]]:
        """The kept sentences by image; the others are appended to `rejects`."""
        judgements: Sequence[Judgement | None] = [None] * len(claims)
        if self.asked is not None and claims:
            judgements = judge(self.asked, [_statement(item, sighting) for item, sighting in claims])
        reasons: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for (item, sighting), judgement in zip(claims, judgements, strict=True):
            member = item[sighting.image]
            if judgement is None or judgement.holds(self.min_margin):
                reason = self._reason(member, sighting, judgement)
                reasons.setdefault((member.row, member.column), []).append(reason.to_row())
            else:
                why = "not_borne_out" if judgement.alone else "not_denied"
                detail = f"{sighting.kind}: {sighting.text} ({judgement})"
                rejects.append(Reject(member.id, self.source, why if judgement.is_complete else "not_judged", detail))
        return [{"row": row, "column": column, "reasons": some} for (row, column), some in sorted(reasons.items())]

    def _reason(self, member: Member, sighting: Sighting, judgement: Judgement | None) -> Reason:
        margin = judgement.margin if judgement else None
        alone = judgement is not None and judgement.alone
        return Reason(
            text=sighting.text,
            kind=sighting.kind,
            supports=member.label,
            source=self.source,
            box=box_in_pixels(sighting.box, member.image.size) if sighting.box else None,
            margin=None if margin is None else round(margin, 2),
            checked_by=(self.checked_by + (", without a counterpart" if alone else "")) if judgement else "",
        )


def _statement(item: Sequence[Member], sighting: Sighting) -> Statement:
    image = item[sighting.image].image.open()
    other = item[1 - sighting.image].image.open() if len(item) == 2 else None
    place = place_of(box_in_pixels(sighting.box, image.size), image.size) if sighting.box else None
    return Statement(sighting.text, image, other, place)
