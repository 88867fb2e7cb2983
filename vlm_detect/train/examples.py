"""From a dataset's rows to training examples: images with questions and answers, in units of two classes.

A `Unit` is an item of the training set: an unaltered image and its counterpart, with the same kinds of questions, in
the same batch. The units of a pair dataset are its rows; from an image dataset, which has no pairs, each epoch samples
one image of either class per unit. So the classes are balanced in every batch.

The random choices of a unit depend only on (seed, epoch, index), not on worker processes, resuming or reading order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from vlm_detect.errors import UserError
from vlm_detect.images.stored import Cells, StoredImage, cell_name, undecoded
from vlm_detect.questions.kind import KINDS
from vlm_detect.questions.sample import sample_questions
from vlm_detect.records import EDITED_KINDS, Label, Question, Reason, Subject, Topic, instruction_of, label_of_twin
from vlm_detect.train.augment import Augmentation, AugmentedImage, Views, check_augmentations, sample_augmentation
from vlm_detect.train.conversations import questions_of
from vlm_detect.train.options import QuestionOptions


@dataclass(frozen=True)
class Example:
    """One image of a unit with its questions."""

    image: StoredImage
    questions: list[Question]
    label: Label


class Units(TorchDataset[list[Example]]):
    """The training set: item (epoch, index) is a unit, a list of two `Example`s.

    Args:
        rows: a pair dataset or an image dataset (the columns of `vlm_detect.records`). seed: of all random choices.
        augment: names of `vlm_detect.train.augment`; both members of a unit are augmented alike. views: the number of
        augmented views of each image, when features are cached; None: a new one per unit and epoch.
    """

    def __init__(
        self,
        rows: Dataset,
        options: QuestionOptions,
        seed: int = 0,
        augment: Sequence[str] = (),
        views: int | None = None,
    ) -> None:
        check_augmentations(augment)
        self.rows, self.options, self.seed, self.augment = undecoded(rows), options, seed, tuple(augment)
        self.source: _PairUnits | _ImageUnits | None = None  # None: conversations, which have their own questions
        if "turns" not in rows.column_names:
            self.source = _PairUnits(self.rows) if "twin" in rows.column_names else _ImageUnits(self.rows, seed)
        elif options.shuffle_labels:
            raise UserError("--shuffle_labels: conversations have no labels to shuffle; give pairs or images")
        # In half of the units, so that the labels cannot be learned.
        lot = random.Random(f"labels:{seed}").sample(range(len(self)), len(self) // 2)
        self.swapped = frozenset(lot if options.shuffle_labels else [])
        self.views = [
            sample_augmentation(self.augment, random.Random(f"view:{seed}:{view}")) for view in range(views or 0)
        ]

    def __len__(self) -> int:
        return len(self.rows) if self.source is None else len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> list[Example]:
        epoch, index = key
        if self.source is None:
            return [self._conversation(epoch, index)]
        members, topic = self.source.unit(epoch, index)
        # Answers about an edit name its place.
        augmentation = () if topic == "edit" else self._augmentation(epoch, index)
        only_flipped = [name for name, _ in augmentation] == ["flip"]
        subjects = [subject.mirrored() if only_flipped else subject for _, subject in members]
        if index in self.swapped:
            subjects.reverse()
        asked = [self._questions(subject, topic, epoch, index) for subject in subjects]
        explains = has_reasons(self.rows) and any(one.kind == "explain" for some in asked for one in some)
        if explains and not only_flipped:
            # Reasons were measured on the stored pixels: changed noise or sharpness would make them false.
            augmentation = ()
        return [
            Example(AugmentedImage.from_image(image, augmentation), questions, subject.label)
            for (image, _), questions, subject in zip(members, asked, subjects, strict=True)
        ]

    def _questions(self, subject: Subject, topic: Topic, epoch: int, index: int) -> list[Question]:
        assert self.source is not None
        questions = sample_questions(
            subject,
            random.Random(f"questions:{self.seed}:{epoch}:{index}"),  # equal for both members
            kinds=self._kinds,
            per_image=self.options.questions_per_image,
            topic=topic,
            other_captions=self.source.captions,
        )
        # If none of the kinds applies to this image, the verdict does.
        return questions or sample_questions(subject, random.Random(f"{self.seed}:{epoch}:{index}"), topic=topic)

    def _conversation(self, epoch: int, index: int) -> Example:
        row, augmentation = self.rows[index], self._augmentation(epoch, index)
        image = StoredImage.from_cell(row["image"], cell_name(index, "image"))
        return Example(AugmentedImage.from_image(image, augmentation), questions_of(row), row["label"])

    def _augmentation(self, epoch: int, index: int) -> Augmentation:
        if self.views:
            return self.views[(epoch + index) % len(self.views)]
        return sample_augmentation(self.augment, random.Random(f"augment:{self.seed}:{epoch}:{index}"))

    @property
    def images(self) -> Sequence[StoredImage]:
        """Every image that an epoch may sample, in each of its views if their number is fixed."""
        columns = [name for name in ("image", "twin") if name in self.rows.column_names]
        cells = Cells(self.rows, [(row, column) for row in range(len(self.rows)) for column in columns])
        return Views(cells, [*self.views, ()]) if self.views else cells

    @property
    def _kinds(self) -> Sequence[str]:
        return [kind for kind in KINDS if kind in self.options.question_kinds]


def has_reasons(rows: Dataset) -> bool:
    """Whether the rows have reasons (from `add-reasons`)."""
    return bool({"reasons", "twin_reasons"} & set(rows.column_names))


class EpochSampler(Sampler[tuple[int, int]]):
    """Iterates over the units in an order determined by (seed, epoch), and passes the epoch to the units."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = list(range(self.length))
        random.Random(f"order:{self.seed}:{self.epoch}").shuffle(order)
        return iter([(self.epoch, index) for index in order])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


_KEPT_ORDERS = 24

_Members = list[tuple[StoredImage, Subject]]


class _PairUnits:
    """Rows of a pair dataset: the image and its twin. (A twin of a generated image is usable only as an edit of it.)"""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self.captions = sorted({caption for caption in rows["caption"] if caption})
        kinds = zip(rows["kind"], rows["image_label"], strict=True)
        self.indices = [i for i, (kind, label) in enumerate(kinds) if kind in EDITED_KINDS or label == "real"]

    def __len__(self) -> int:
        return len(self.indices)

    def unit(self, epoch: int, index: int) -> tuple[_Members, Topic]:
        place = self.indices[index]
        row = self.rows[place]
        label = label_of_twin(row["kind"])
        image, twin = (StoredImage.from_cell(row[column], cell_name(place, column)) for column in ("image", "twin"))
        before = Subject(
            label=row["image_label"],
            caption=row["caption"] or "",
            size=image.size,
            reasons=_reasons(row, "image_reasons"),
        )
        after = Subject(
            label=label,
            kind=row["kind"],
            generator=row["generator"] or "",
            caption=row["caption"] or "",
            edit=row["edit"],
            size=twin.size,
            reasons=_reasons(row, "twin_reasons"),
            instruction=instruction_of(row),
        )
        return [(image, before), (twin, after)], "edit" if label == "edited" else "generation"


class _ImageUnits:
    """Rows of an image dataset: a real and a generated image; then, where there are edited ones, a real and an edited.

    An epoch is as long as the larger class; images of the smaller class are repeated.
    """

    def __init__(self, rows: Dataset, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.by_label: dict[str, list[int]] = {"real": [], "generated": [], "edited": []}
        for index, label in enumerate(rows["label"]):
            self.by_label[label].append(index)
        classes = rows["object_class"] if "object_class" in rows.column_names else []
        self.captions = sorted({_photo_of(name) for name in classes if name})
        real, generated, edited = (len(self.by_label[label]) for label in ("real", "generated", "edited"))
        self.n_generation = max(real, generated) if real and generated else 0
        self.n_edit = edited if real else 0
        self._orders: dict[tuple[str, int], list[int]] = {}

    def __len__(self) -> int:
        return self.n_generation + self.n_edit

    def unit(self, epoch: int, index: int) -> tuple[_Members, Topic]:
        topic: Topic = "generation" if index < self.n_generation else "edit"
        other: Label = "generated" if topic == "generation" else "edited"
        place = index if topic == "generation" else index - self.n_generation
        return [self._member("real", epoch, place), self._member(other, epoch, place)], topic

    def _member(self, label: Label, epoch: int, place: int) -> tuple[StoredImage, Subject]:
        index = self._order(label, epoch)[place % len(self.by_label[label])]
        row: dict[str, Any] = self.rows[index]
        image = StoredImage.from_cell(row["image"], cell_name(index, "image"))
        generator = (row.get("generator") or "") if label != "real" else ""
        caption = _photo_of(row["object_class"]) if row.get("object_class") else ""
        edit = row.get("edit") if label == "edited" else None
        return image, Subject(
            label=label,
            generator=generator,
            caption=caption,
            edit=edit,
            size=image.size,
            reasons=_reasons(row, "reasons"),
        )

    def _order(self, label: Label, epoch: int) -> list[int]:
        """The class's rows in this epoch's order; recent epochs are cached (a mixture reads several)."""
        if (label, epoch) not in self._orders:
            self._orders = dict(list(self._orders.items())[1 - _KEPT_ORDERS :])
            order = list(self.by_label[label])
            random.Random(f"class:{self.seed}:{epoch}:{label}").shuffle(order)
            self._orders[label, epoch] = order
        return self._orders[label, epoch]


def _reasons(row: Mapping[str, Any], column: str) -> tuple[Reason, ...] | None:
    return None if column not in row else tuple(Reason.from_row(reason) for reason in row[column] or ())


def _photo_of(object_class: str) -> str:
    """A caption for an image with only an object class."""
    article = "an" if object_class[0].lower() in "aeiou" else "a"
    return f"{article} {object_class.replace('_', ' ')}"
