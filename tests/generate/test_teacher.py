"""Teachers that are good, bad, contradictory, silent or gone: what is kept is checked, and nothing is lost."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.generate.fake_teacher import BOX, OUTCOMES, SIDE, fake_teacher, picture
from tests.generate.reason_sets import cell, reasons_of, rejects_of, write, write_pairs
from tests.scripts.here import run_here
from vlm_detect.columns import IMAGE_FEATURES
from vlm_detect.config import read_run_json
from vlm_detect.generate import asked_models, teacher_step
from vlm_detect.generate.asked_models import AskedModel, side_by_side
from vlm_detect.infer.endpoint import Endpoint
from vlm_detect.records import Reason

PROGRAM = "data_gen/reasons.py"
MARGIN = 2 * math.log(9)  # nats: the judge gives 0.9 to the right answer, of either image


@pytest.fixture(autouse=True, scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own, and requests that are given up soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(asked_models, "Endpoint", functools.partial(Endpoint, retries=0, timeout_s=3.0))
        asked_models.open_model.cache_clear()
        yield
        asked_models.open_model.cache_clear()


def add(dataset: Path, out: Path, *more: object, status: int = 0) -> Any:
    arguments = [dataset, "--out", out, "--reasons", "teacher", "--teacher_shard_size", 8, *more]
    with mock.patch("vlm_detect.generate.dataset_files.write_audit"):
        done = run_here(PROGRAM, *arguments)
    assert done.returncode == status, done.stderr
    return done


def asked(server: Any) -> list[object]:
    return ["--teacher_endpoint", server.url, "--teacher", "fake-vlm"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """All cases once, with what the endpoint was asked."""
    tmp_path = tmp_path_factory.mktemp("taught")
    pairs = write_pairs(tmp_path / "pairs", list(OUTCOMES))
    with fake_teacher() as server:
        done = add(pairs, tmp_path / "out", *asked(server))
        return tmp_path / "out", (server.requests, done)


def test_kept_sentences_were_agreed_on_and_denied_of_the_other_image(taught: Any) -> None:
    out, _ = taught
    twins, rejects = reasons_of(out, "twin_reasons"), rejects_of(out)
    for number, outcome in OUTCOMES.items():
        assert bool(twins[f"photo {number}"]) == (not outcome), number
        if outcome:
            assert set(rejects[f"pair {number} twin"]) == {outcome}
    (kept,) = twins["photo 0"]
    left, top, right, bottom = (round(part * SIDE) for part in BOX)
    assert kept == Reason(
        text="A red square floats at the top.",
        kind="physics",
        supports="generated",
        source="teacher",
        box=(left, top, right, bottom),
        margin=pytest.approx(MARGIN, abs=0.01),
        checked_by="fake-vlm (the teacher itself)",
    )
    assert twins["photo 9"][0].box is None


def test_photos_have_reasons_too(taught: Any) -> None:
    out, _ = taught
    photos = reasons_of(out, "image_reasons")
    ((kept,), (twin,)) = photos.pop("photo 10"), reasons_of(out, "twin_reasons")["photo 10"]
    assert (kept.text, kept.supports, kept.kind) == ("A green square lies on the wall.", "real", "light")
    assert (twin.text, twin.supports) == ("A red square floats at the top.", "generated")
    assert not any(photos.values())


def test_the_judge_does_not_know_the_label(taught: Any) -> None:
    _, (requests, _) = taught
    texts = [request["messages"][0]["content"][-1]["text"] for request in requests]
    judging = [text for text in texts if text.startswith(("Is this true", "Look at"))]
    assert len(judging) > 8
    assert not any(word in text for text in judging for word in ("photo", "generated", "AI"))
    assert any("Look at the upper right" in text or "Look at the top" in text for text in judging)


def test_the_card_has_counts_and_names_teacher_and_judge(taught: Any) -> None:
    out, (_, done) = taught
    card = (out / "README.md").read_text()
    assert "judge: the teacher itself" in card
    assert "Images were sent to: nobody" in card  # the endpoint is on this machine
    assert "images are sent" not in done.stderr
    assert "Kept teacher's sentences: 4 of " in card
    rejects = Counter(reason for some in rejects_of(out).values() for reason in some)
    for reason in set(OUTCOMES.values()) - {""}:
        assert f"{rejects[reason]} {reason}" in card
    asked = read_run_json(out)["config"]["reasons"]["teacher"]
    assert (asked["teacher"], asked["judge"], asked["min_margin"]) == ("fake-vlm", None, 1.0)


def test_a_higher_margin_keeps_less(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [0, 9])
    with fake_teacher() as server:
        add(pairs, tmp_path / "out", *asked(server), "--min_margin", 5)
    assert not any(reasons_of(tmp_path / "out", "twin_reasons").values())
    assert all("not_denied" in some for some in rejects_of(tmp_path / "out").values())


def test_a_judge_without_log_probabilities_judges_by_its_answers(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [0, 6, 12])
    with fake_teacher(logprobs=False) as server:
        add(pairs, tmp_path / "out", *asked(server))
    twins = reasons_of(tmp_path / "out", "twin_reasons")
    assert {group: len(some) for group, some in twins.items()} == {"photo 0": 1, "photo 6": 0, "photo 12": 0}
    assert twins["photo 0"][0].margin is None
    table = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    details = {row["id"]: row["detail"] for row in table}
    assert "(yes of its image, yes of the other)" in details["pair 6 twin"]
    assert "(no of its image, no of the other)" in details["pair 12 twin"]


@pytest.mark.parametrize("how", ["refuses", "hangs", "evades"])
@pytest.mark.parametrize("logprobs", [True, False])
def test_a_counterpart_that_the_judge_gives_no_answer_about_denies_nothing(
    tmp_path: Path, how: str, logprobs: bool
) -> None:
    """One question of many: the run continues, and its sentence is neither kept nor counted as denied."""
    pairs = write_pairs(tmp_path / "pairs", [0, 9])
    with fake_teacher(logprobs=logprobs) as server, contextlib.ExitStack() as stack:
        answer, refusal = type(server).answer, type(server).refusal

        def is_it(request: dict[str, Any]) -> bool:
            to_judge = "Is this true" in request["messages"][0]["content"][-1]["text"]
            return to_judge and server.number(request) == 0 and not server.has_red(server.pictures(request))

        def refused(self: Any, request: dict[str, Any], key: str) -> Any:
            return (400, "filtered") if how == "refuses" and is_it(request) else refusal(self, request, key)

        def answered(self: Any, request: dict[str, Any]) -> dict[str, Any]:
            if how == "hangs" and is_it(request):
                time.sleep(4.0)
            found = answer(self, request)
            if how == "evades" and is_it(request):
                found["choices"][0] |= {"message": {"role": "assistant", "content": "It depends."}, "logprobs": None}
            return found

        for name, by in (("refusal", refused), ("answer", answered)):
            stack.enter_context(mock.patch.object(type(server), name, by))
        add(pairs, tmp_path / "out", *asked(server))
    twins = reasons_of(tmp_path / "out", "twin_reasons")
    assert {group: len(some) for group, some in twins.items()} == {"photo 0": 0, "photo 9": 1}
    assert rejects_of(tmp_path / "out") == {"pair 0 twin": ["not_judged"]}


def test_an_endpoint_without_schema_support_is_prompted_in_words(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [0])
    with fake_teacher(refused=("response_format", "seed")) as server:
        add(pairs, tmp_path / "out", *asked(server))
    assert reasons_of(tmp_path / "out", "twin_reasons")["photo 0"]


def test_images_without_a_twin_are_judged_alone(tmp_path: Path) -> None:
    rows = []
    for number, label in ((0, "generated"), (12, "generated"), (3, "real")):
        image = cell(picture(number, twin=label == "generated"))
        rows.append(dict.fromkeys(IMAGE_FEATURES) | {"image": image, "label": label, "group": f"photo {number}"})
    with fake_teacher() as server:
        add(write(tmp_path / "set", rows, IMAGE_FEATURES), tmp_path / "out", *asked(server))
    found = reasons_of(tmp_path / "out", "reasons")
    (kept,) = found.pop("photo 0")
    assert kept.checked_by == "fake-vlm (the teacher itself), without a counterpart"
    assert kept.margin == pytest.approx(math.log(9), abs=0.01)
    assert not any(found.values())
    reasons = Counter(reason for some in rejects_of(tmp_path / "out").values() for reason in some)
    assert reasons == {"not_borne_out": 1, "sees_nothing": 1}


def test_edits_are_not_asked_about(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [0, 1, 9], edits=[0, 1])
    with fake_teacher() as server:
        add(pairs, tmp_path / "out", *asked(server))
        assert {server.number(request) for request in server.requests if server.is_question(request)} == {9}


def test_a_dataset_of_edits_alone_has_nothing_to_ask_about(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [0, 1], edits=[0, 1])
    with fake_teacher() as server:
        for more in ([], ["--dry_run"]):
            done = add(pairs, tmp_path / "out", *asked(server), *more, status=1)
            assert "has no photo with a generated twin to show a teacher" in done.stderr
            assert done.stderr.count("\n") == 1
        assert not server.requests


def test_a_rate_limit_ends_the_run_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    numbers = [n for n in OUTCOMES if n not in (18, 19)]
    pairs = write_pairs(tmp_path / "pairs", numbers)
    with fake_teacher() as server:
        arguments = [*asked(server), "--parallel", 1]
        with contextlib.ExitStack() as stack:
            first_shard = 2 * 8 + 12  # two draws a row, and the judge's questions: the second shard is begun
            refuse = stack.enter_context(mock.patch.object(type(server), "refusal", autospec=True))
            seen = []

            def limited(self: Any, request: dict[str, Any], key: str) -> Any:
                seen.append(request)
                return (429, "slow down") if len(seen) > first_shard else None

            refuse.side_effect = limited
            stopped = add(pairs, tmp_path / "out", *arguments, status=1)
        assert "does not answer" in stopped.stderr
        assert "run the same command again" in stopped.stderr
        shards = sorted((tmp_path / "out.work" / "teacher" / "shards").glob("0*"))
        assert [shard.name for shard in shards] == ["00000"]
        server.requests.clear()
        add(pairs, tmp_path / "out", *arguments)
        again = [server.number(request) for request in server.requests if server.is_question(request)]
    assert sorted(set(again)) == numbers[8:]
    twins = reasons_of(tmp_path / "out", "twin_reasons")
    assert {n for n in numbers if twins[f"photo {n}"]} == {n for n in numbers if not OUTCOMES[n]}


def test_an_endpoint_that_never_answers_in_time_ends_the_run(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [19])
    with fake_teacher() as server:
        stopped = add(pairs, tmp_path / "out", *asked(server), status=1)
    assert "does not answer" in stopped.stderr
    assert not list((tmp_path / "out.work" / "teacher").glob("shards/0*"))


def test_a_dry_run_sends_no_request(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [0, 1, 2])
    far = ["--teacher_endpoint", "https://models.example/v1", "--teacher", "large-vlm", "--dry_run"]
    with mock.patch.object(teacher_step, "open_model", side_effect=AssertionError("asked")):
        done = add(pairs, tmp_path / "out", *far)
    assert "6 questions to the teacher with 12 images" in done.stdout
    assert "images are sent from this machine to https://models.example/v1 (the teacher, large-vlm)" in done.stdout
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()
    limited = add(pairs, tmp_path / "out", *far, "--teacher_limit", 1)
    assert "2 questions to the teacher with 4 images" in limited.stdout


def test_a_locally_loaded_teacher(tmp_path: Path) -> None:
    """The nano moondream knows no JSON: every answer is a reject that says so, and the dataset stands."""
    pairs = write_pairs(tmp_path / "pairs", [0, 1])
    add(pairs, tmp_path / "out", "--teacher", "nano")
    assert rejects_of(tmp_path / "out") == {"pair 0 twin": ["no_json"], "pair 1 twin": ["no_json"]}
    assert not any(reasons_of(tmp_path / "out", "twin_reasons").values())


def test_a_locally_loaded_judge(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [0, 9])
    with fake_teacher() as server:
        add(pairs, tmp_path / "out", *asked(server), "--judge", "nano", "--min_margin", 0)
        assert not [r for r in server.requests if "Is this true" in r["messages"][0]["content"][-1]["text"]]
    kept = [one for some in reasons_of(tmp_path / "out", "twin_reasons").values() for one in some]
    rejected = [reason for some in rejects_of(tmp_path / "out").values() for reason in some]
    assert len(kept) + rejected.count("not_denied") == 2
    assert all(one.checked_by == "nano" for one in kept)
    assert "judge: nano" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--reasons teacher and --teacher MODEL go together"),
        (["--reasons", "measured", "--teacher", "nano"], "go together"),
        (
            ["--reasons", "measured", "--judge", "nano"],
            "--judge nano: checks sentences of --reasons teacher or imported",
        ),
        (["--teacher_endpoint", "http://localhost:1/v1"], "give its model's name with --teacher"),
        (["--teacher", "nano", "--judge_endpoint", "http://localhost:1/v1"], "give its model's name with --judge"),
        (["--teacher", "nano", "--min_margin", "-1"], "--min_margin -1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], message: str) -> None:
    pairs = write_pairs(tmp_path / "pairs", [0])
    assert message in add(pairs, tmp_path / "out", *arguments, status=2).stderr


def test_where_images_go() -> None:
    assert AskedModel("a", "https://models.example/v1").leaves_this_machine
    assert not AskedModel("a", "http://localhost:8000/v1").leaves_this_machine
    assert not AskedModel("a").leaves_this_machine


def test_images_side_by_side() -> None:
    one, two = Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 8), "blue")
    joined = side_by_side([one, two])
    assert joined.size == (48, 20)
    assert [joined.getpixel(at) for at in ((5, 5), (12, 5), (20, 5), (20, 15))] == [
        (255, 0, 0), (255, 255, 255), (0, 0, 255), (255, 255, 255)
    ]  # fmt: skip
    assert side_by_side([one]) is one
