import itertools
import random
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlm_detect.benchmark.build import build, operate
from vlm_detect.benchmark.text_baselines import baselines_by_kind
from vlm_detect.questions.ask import YES
from vlm_detect.questions.kind import prompts_of
from vlm_detect.questions.kinds.multiple_choice import OPERATIONS
from vlm_detect.questions.prompts import topic_of
from vlm_detect.records import Item, Pair, Source

NAMES = ("true_false", "multiple_choice", "attribution", "which_of_two", "open")
OPERATIONS_OF_EDITS = ("blur", "splice", "copy_move")
CORNERS = ((0, 0, 20, 20), (80, 80, 99, 99), (80, 0, 99, 20), (0, 80, 9, 99))
EDITS = list(itertools.product(OPERATIONS_OF_EDITS, CORNERS))


def sizes(*counts: int) -> dict[str, int]:
    """Of the kinds in the order of `NAMES`; those behind have their own."""
    return dict(zip(NAMES, counts, strict=False))


def pairs(
    n: int, kinds: tuple[str, ...] = ("caption",), generators: tuple[str, ...] = ("sd35",), edits: int = 0
) -> list[Pair]:
    made = [
        (
            Source(f"{i}:image", "real", "", f"g{i}"),
            Source(f"{i}:twin", "generated", generators[i % len(generators)], f"g{i}", kinds[i % len(kinds)]),
        )
        for i in range(n)
    ]
    for i in range(edits):
        operation, box = EDITS[i % len(EDITS)]
        edit = {"operation": operation, "box": list(box)}
        twin = Source(f"e{i}:twin", "edited", operation, f"e{i}", "edit", edit=edit, size=(100, 100))
        made.append((Source(f"e{i}:image", "real", "", f"e{i}"), twin))
    return made


def test_no_question_is_asked_twice_about_a_photo_with_several_twins() -> None:
    twins = pairs(40, kinds=("caption", "vae"))
    built = build([(twins[i - i % 2][0], twin) for i, (_, twin) in enumerate(twins)])
    items = Counter((item.images, item.question, item.options) for item in built)
    assert max(items.values()) == 1
    sides = Counter((item.kind, item.ground_truth) for item in built if item.kind == "true_false")
    assert len(set(sides.values())) == 1  # the blocks are whole
    assert sum(sides.values()) == 20 * 4 * 2  # four questions to each photo and to one of its twins


def as_items(built: list[Item]) -> list[Item]:
    return [replace(item, id=str(i)) for i, item in enumerate(built)]


def shown(item: Item, dataset: list[Pair]) -> list[tuple[Source, str]]:
    """The images of a built item, and what is to be done to each."""
    sources = {source.ref: source for pair in dataset for source in pair}
    return [(sources[name.partition("#")[0]], name.partition("#")[2]) for name in item.images]


@pytest.mark.parametrize(
    "dataset",
    [
        pairs(300),
        pairs(400, kinds=("caption", "caption", "caption", "vae")),
        pairs(400, generators=("glide", "sd35", "sd35", "sd35", "a very long name of a generator")),
        pairs(200, kinds=("caption", "vae"), edits=100),
    ],
    ids=["one maker", "two kinds, unequal", "three makers, unequal", "with edits"],
)
def test_text_alone_scores_at_most_chance(dataset: list[Pair]) -> None:
    items = as_items(build(dataset))
    assert sum(item.kind == "multiple_choice" for item in items) == 1000
    for kind, floors in baselines_by_kind(items).items():
        for name, value in floors.items():
            assert value <= floors["chance"] + 0.04, (kind, name, floors)


def test_every_answer_to_a_text_is_right_equally_often() -> None:
    answers: dict[tuple, Counter] = defaultdict(Counter)
    for item in build(pairs(60, kinds=("caption", "vae")), sizes(200, 200, 60, 60, 0)):
        answers[item.kind, item.question, item.options][item.ground_truth] += 1
    for (kind, _, options), counts in answers.items():
        assert len(set(counts.values())) == 1, counts
        assert len(counts) == (len(options) if options else 2), kind


def test_an_image_dataset_with_generators() -> None:
    """Photos and images of another maker that were never a pair, as `dataset_pairs` matches them."""
    dataset = [
        (
            Source(f"{i}:image", "real", "", f"r{i}", object_class="cat"),
            Source(f"{500 + i}:image", "generated", ("glide", "biggan", "adm")[i % 3], f"f{i}", object_class="cat"),
        )
        for i in range(300)
    ]
    items = as_items(build(dataset))
    counts = Counter(item.kind for item in items)
    assert counts == {
        "true_false": 1000,
        "multiple_choice": 1000,
        "attribution": 200,
        "which_of_two": 200,
        "open": 200,
    }
    reasons = {item.metadata["reason"] for item in items if item.kind == "multiple_choice"}
    assert {"glide made it", "biggan made it", "adm made it"} <= reasons
    for kind, floors in baselines_by_kind(items).items():
        assert all(value <= floors["chance"] + 0.04 for value in floors.values()), (kind, floors)


def test_reasons_state_what_was_done() -> None:
    dataset = pairs(60, kinds=("caption", "vae"))
    for item in build(dataset, sizes(0, 200, 0, 0, 0)):
        ((source, operation),) = shown(item, dataset)
        right = item.options["ABCD".index(item.ground_truth)]
        assert operation in OPERATIONS  # of generated images too: it tells nothing about the class
        if source.label == "real":
            assert right == f"It is a real photo, and {OPERATIONS[operation]}."
        else:
            assert (
                right
                == {
                    "caption": "It is AI-generated, and it was drawn from a text.",
                    "vae": "It is AI-generated, and it was painted after a photo.",
                }[source.kind]
            )
        verdicts = Counter(option.split(",")[0] for option in item.options)
        assert sorted(verdicts.values()) == [2, 2]


def test_edits_are_asked_for_operation_and_place() -> None:
    dataset = pairs(0, edits=12)
    items = [i for i in build(dataset, sizes(40, 40, 40, 40)) if i.kind == "multiple_choice"]
    assert len(items) >= 8
    for item in items:
        ((source, operation),) = shown(item, dataset)
        assert operation == ""
        edit_words = source.edit_words
        right = item.options["ABCD".index(item.ground_truth)]
        assert right.lower() == f"{edit_words['operation']} at the {edit_words['place']}."
        assert item.metadata["edit"] == edit_words
        assert item.metadata["asked"] == "edited"
    # Neither the operation nor the place alone gives the answer.
    words = [option.rstrip(".").split(" at the ") for option in items[0].options]
    assert [len({word[i] for word in words}) for i in (0, 1)] == [2, 2]


def test_edits_of_generated_images_have_an_unaltered_original() -> None:
    dataset = [(replace(photo, label="generated"), twin) for photo, twin in pairs(0, edits=4)]
    items = [item for item in build(dataset, sizes(16, 0, 0, 0, 0)) if item.metadata["asked"] == "edited"]
    assert items
    for item in items:
        affirmed = item.ground_truth in ("Yes.", "True.")
        asks_for_edit = "No part" not in item.question and "free of" not in item.question
        assert affirmed == ((item.metadata["label"] == "edited") == asks_for_edit)


def test_a_small_benchmark_has_edits_and_the_other_kinds() -> None:
    items = as_items(build(pairs(60, edits=60), sizes(40, 40, 0, 0, 40)))
    topics = Counter((item.kind, topic_of(item)) for item in items)
    for kind in ("true_false", "multiple_choice", "open"):
        assert topics[kind, "generation"] > topics[kind, "edit"] > 0, topics


def test_unknown_generators_give_no_reason_and_are_not_real() -> None:
    dataset = pairs(60, generators=("glide", "", "adm"))
    items = build(dataset, sizes(40, 40, 20, 0, 0))
    for item in items:
        (source, _), *_ = shown(item, dataset)
        unknown = source.label == "generated" and not source.generator
        assert (item.metadata["generator"] == "unknown") == unknown
        assert not (unknown and item.kind != "true_false")
        assert all(", and it" in option or " made it." in option for option in item.options if "It is" in option)
    # One known maker is none to choose among: the operations are.
    alone = build(pairs(60, generators=("glide", "")), sizes(0, 40, 0, 0, 0))
    assert {item.metadata["reason"] for item in alone} == set(OPERATIONS.values())


def test_edits_without_a_box_have_no_question_on_the_place() -> None:
    dataset = pairs(0, edits=8)
    boxless = [(photo, replace(twin, edit={"operation": "blur", "box": None})) for photo, twin in dataset]
    items = build(boxless, sizes(40, 40, 40, 40, 40))
    assert {item.kind for item in items} == {"true_false", "open"}
    assert not any("edit" in item.metadata for item in items)


def test_open_questions_are_asked_about_photo_and_twin() -> None:
    items = build(pairs(4, kinds=("caption", "vae"), edits=4), sizes(0, 0, 0, 0, 100))
    assert len(items) == 16
    assert Counter(item.metadata["label"] for item in items) == {"real": 8, "generated": 4, "edited": 4}
    references = {item.ground_truth for item in items if item.metadata["label"] == "edited"}
    assert "Altered. Blur at the upper left." in references
    for item in as_items(items):
        scored = prompts_of(item)[1:]
        truths = {prompt.candidates[prompt.right] == YES for prompt in scored}
        assert truths == {True, False}  # one polarity is true
        assert topic_of(item) == ("edit" if "altered" in item.question else "generation")


def test_which_of_two_in_both_orders() -> None:
    dataset = pairs(5)
    items = build(dataset, sizes(0, 0, 0, 100, 0))
    assert len(items) == 10
    for item in items:
        left, right = (source.label for source, _ in shown(item, dataset))
        assert (left, right)["AB".index(item.ground_truth)] == "generated"
    assert Counter(item.ground_truth for item in items) == {"A": 5, "B": 5}


def test_items_depend_on_the_seed_and_do_not_repeat() -> None:
    dataset = pairs(40)
    first, second = build(dataset, sizes(100, 100, 50, 50), 1), build(dataset, sizes(100, 100, 50, 50), 1)
    assert first == second
    assert first != build(dataset, sizes(100, 100, 50, 50), 2)
    keys = [(i.kind, i.question, i.options, i.images) for i in first]
    assert len(set(keys)) == len(keys)


def test_sizes_are_upper_bounds_in_complete_blocks() -> None:
    counts = Counter(item.kind for item in build(pairs(3), sizes(7, 7, 7, 7)))
    assert counts == {"true_false": 6, "multiple_choice": 4, "attribution": 6, "which_of_two": 6, "open": 6}
    assert build([]) == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_change_the_image(operation: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    changed = operate(image, operation, random.Random(0))
    assert changed.mode == "RGB"
    assert (changed.size == image.size) == (operation == "jpeg")
    assert changed.size != image.size or np.asarray(changed).tolist() != np.asarray(image).tolist()
    assert operate(Image.new("RGB", (1, 1)), operation, random.Random(0)).size == (1, 1)
