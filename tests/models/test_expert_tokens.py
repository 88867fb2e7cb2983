"""Expert tokens: what sees them, one answer on every path, and what is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.factories import tiny_vlm
from tests.infer.test_witnesses import save_cnn, toys
from tests.models.tiny_chat import save_tiny
from tests.scripts.here import run_verb
from tests.train.reasoned import reasoned_images
from tests.train.toys import save_tiny_model, save_toy_pairs, toy_pairs
from vlm_detect import Detector
from vlm_detect.errors import UserError
from vlm_detect.infer.asks import Ask
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.evidence import evidence_map
from vlm_detect.infer.reference import generate_plain, score_plain
from vlm_detect.infer.verdict import log_odds
from vlm_detect.models.base import VLM
from vlm_detect.models.expert_tokens import FILE, TokenExpert, WithExpertTokens, attach
from vlm_detect.models.export import export
from vlm_detect.models.registry import load_vlm
from vlm_detect.models.rows import CAUSAL
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Units
from vlm_detect.train.features import Features
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions, QuestionOptions

N = 3
IMAGES, _ = toys(4)
QUESTION = "Is this image AI-generated?"


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cnn(tmp_path_factory.mktemp("expert") / "cnn")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llava", tmp_path_factory.mktemp("llava"))


def base(name: str, llava: Path) -> VLM:
    return tiny_vlm() if name == "moondream" else load_vlm(str(llava), device="cpu")


def fused(vlm: VLM, cnn: Path, *, learned: bool = True, **options: float) -> WithExpertTokens:
    """The model with expert tokens; `learned`: as if its projector had been trained."""
    expert = TokenExpert.load(cnn, n_tokens=N, dropout=options.get("dropout", 0.2))
    made = attach(vlm, expert)
    if learned:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.nn.init.normal_(made.model.expert_tokens.weight, std=0.3)
    made.model.eval()
    return made


@pytest.fixture(params=["moondream", "llava"])
def pair(request: pytest.FixtureRequest, cnn: Path, llava: Path) -> tuple[VLM, VLM]:
    """A model, and the same with expert tokens that were learned."""
    return base(request.param, llava), fused(base(request.param, llava), cnn)


def test_the_image_prefix_does_not_see_the_tokens(pair: tuple[VLM, VLM]) -> None:
    alone, vlm = pair
    length = len(alone.prefix_ids())
    assert len(vlm.prefix_ids()) == length + N
    assert vlm.two_way_blocks(vlm.prefix_ids()) == alone.two_way_blocks(alone.prefix_ids()) + [CAUSAL] * N
    for before, after in zip(Engine(alone).prefixes(IMAGES), Engine(vlm).prefixes(IMAGES), strict=True):
        assert len(after) == length + N
        for (keys, values), (keys_now, values_now) in zip(before.layers, after.layers, strict=True):
            torch.testing.assert_close(keys_now[:, :, :length], keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(values_now[:, :, :length], values, atol=1e-5, rtol=1e-5)


def test_a_token_sees_those_before_it_and_a_question_sees_all(pair: tuple[VLM, VLM]) -> None:
    _, vlm = pair
    engine = Engine(vlm)
    embeds = engine.encode(IMAGES[:1])
    changed = embeds.clone()
    changed[:, -2, 0] += 5  # the second of the three
    (before,), (after,) = engine.prefill(embeds), engine.prefill(changed)
    keys, keys_now = before.layers[-1][0], after.layers[-1][0]
    differs = (keys_now - keys).abs().amax((0, 1, 3)) > 1e-6
    assert differs.tolist() == [False] * (len(before) - 2) + [True, True]
    asked = [[Ask(QUESTION, ("Yes.",))]]
    assert engine.score_prefixes([before], asked) != engine.score_prefixes([after], asked)


def test_at_first_every_image_has_the_same_tokens(cnn: Path) -> None:
    vlm = fused(tiny_vlm(), cnn, learned=False)
    tokens = Engine(vlm).encode(IMAGES)[:, -N:]
    end = vlm.model.get_input_embeddings().weight[vlm.eos_token_id].detach()
    assert torch.equal(tokens, end.expand_as(tokens))
    assert Engine(fused(tiny_vlm(), cnn)).encode(IMAGES)[:, -N:].std(0).min() > 0


def test_cached_packed_and_sampled_answers_are_the_plain_ones(pair: tuple[VLM, VLM]) -> None:
    alone, vlm = pair
    engine = Engine(vlm)
    asks = [Ask(QUESTION, ("Yes.", "No.")), Ask("What is it?", ("A cat.",))]
    for image, scored in zip(IMAGES, engine.score(IMAGES, [asks] * len(IMAGES)), strict=True):
        for ask, candidates in zip(asks, scored, strict=True):
            for answer, score in zip(ask.candidates, candidates, strict=True):
                plain = score_plain(vlm, image, ask.question, answer)
                assert score.logprob == pytest.approx(plain.logprob, abs=1e-4)
    prompt = vlm.question_ids(QUESTION)
    plain_texts = [[generate_plain(vlm, image, prompt, 4)] for image in IMAGES]
    assert engine.generate(IMAGES, [[QUESTION]] * len(IMAGES), max_new_tokens=4) == plain_texts
    assert engine.generate(IMAGES, [[QUESTION]] * len(IMAGES), max_new_tokens=4, num_beams=1) == plain_texts
    assert np.abs(np.array(log_odds(engine, IMAGES)) - log_odds(Engine(alone), IMAGES)).min() > 1e-3


def trained(cnn: Path, **options: float) -> WithExpertTokens:
    """The model as it is in training: a LoRA, and a projector in a wrapper of peft's."""
    vlm = fused(tiny_vlm(text_config={"max_position_embeddings": 2048}), cnn, **options)
    add_lora(vlm, LoraOptions())
    vlm.model.eval()  # without its dropout
    return vlm


def projector(vlm: VLM) -> Any:
    return vlm.model.expert_tokens.modules_to_save["default"]


def gradients(vlm: VLM, batch: dict[str, object]) -> tuple[float, torch.Tensor]:
    vlm.model.zero_grad()
    loss = answer_loss(vlm, vlm.model, batch)
    loss.backward()
    return float(loss.detach()), projector(vlm).weight.grad.clone()


def test_packed_cached_and_plain_losses_are_equal(cnn: Path, tmp_path: Path) -> None:
    vlm = trained(cnn)
    units = Units(toy_pairs(4), QuestionOptions(questions_per_image=2), augment=["flip"], views=2)
    features = Features.build(vlm, units.images, tmp_path)
    some = [units[0, i] for i in range(4)]
    expected, gradient = gradients(vlm, Collator(vlm, pack=False)(some))
    assert gradient.abs().max() > 0
    for collator in (Collator(vlm, pack=True, row_tokens=200), Collator(vlm, pack=True, features=features)):
        found, its_gradient = gradients(vlm, collator(some))
        assert found == pytest.approx(expected, abs=1e-5)
        torch.testing.assert_close(its_gradient, gradient, atol=1e-5, rtol=1e-3)


def test_losses_at_first_do_not_depend_on_the_expert(cnn: Path, tmp_path: Path) -> None:
    units = Units(toy_pairs(2), QuestionOptions())
    vlm = fused(tiny_vlm(), cnn, learned=False)
    add_lora(vlm, LoraOptions())
    vlm.model.train()  # whatever its dropout does
    batch = Collator(vlm)([units[0, i] for i in range(2)])
    expected, gradient = gradients(vlm, batch)
    assert gradient.abs().max() > 0
    batch["prepared"]["expert_pixels"] = 255 - batch["prepared"]["expert_pixels"]
    assert gradients(vlm, batch)[0] == expected


def test_tokens_drop_features_and_images_in_training_only(cnn: Path) -> None:
    vlm = trained(cnn, dropout=0.5)
    with torch.no_grad():
        projector(vlm).weight.fill_(0.1)
        read = vlm.read(vlm.prepare(IMAGES[:1]))
        assert torch.equal(vlm.join(read), vlm.join(read))
        vlm.model.train()
        many = {name: tensor.expand(40, *tensor.shape[1:]) for name, tensor in read.items()}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            embeds = vlm.join(many)
        assert torch.equal(embeds[:, :-N], many["image_embeds"])
        end = vlm.model.get_input_embeddings().weight[vlm.eos_token_id]
        says_nothing = (embeds[:, -N:] == end).all(2)
        assert torch.equal(says_nothing.any(1), says_nothing.all(1))
        assert 10 < int(says_nothing.all(1).sum()) < 30
        assert not torch.equal(embeds[~says_nothing.all(1)][0, -1], embeds[~says_nothing.all(1)][0, -2])


def test_the_expert_sees_the_augmented_pixels(cnn: Path) -> None:
    vlm = trained(cnn)
    plain, augmented = Units(toy_pairs(1), QuestionOptions()), Units(toy_pairs(1), QuestionOptions(), augment=["blur"])
    epoch = next(e for e in range(20) if augmented[e, 0][0].image.open() != plain[e, 0][0].image.open())
    batch = Collator(vlm)([augmented[epoch, 0]])
    expected = vlm.expert.pixels([example.image.open() for example in augmented[epoch, 0]])
    assert torch.equal(batch["prepared"]["expert_pixels"], expected)
    assert not torch.equal(Collator(vlm)([plain[epoch, 0]])["prepared"]["expert_pixels"], expected)


def test_a_cache_of_another_expert_has_another_name(cnn: Path, tmp_path: Path) -> None:
    units = Units(toy_pairs(1), QuestionOptions())
    vlm = trained(cnn)
    folder = Features.build(vlm, units.images, tmp_path).folder
    assert Features.build(vlm, units.images, tmp_path).folder == folder
    vlm.expert = replace(vlm.expert, source=replace(vlm.expert.source, sha256="0" * 64))
    assert Features.build(vlm, units.images, tmp_path).folder != folder


def test_a_worker_prepares_the_same_without_weights(cnn: Path) -> None:
    vlm = trained(cnn)
    reader = pickle.loads(pickle.dumps(vlm.without_weights()))
    assert reader.expert.network is None
    assert reader.prefix_ids() == vlm.prefix_ids()
    prepared, expected = reader.prepare(IMAGES), vlm.prepare(IMAGES)
    assert torch.equal(prepared["expert_pixels"], expected["expert_pixels"])


@pytest.fixture(scope="module")
def run(cnn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the recipe trained for two steps."""
    home = tmp_path_factory.mktemp("home")
    save_tiny_model(home / "model")
    save_toy_pairs(home / "pairs", n_train=4, n_validation=2)
    done = run_verb("train", "moondream", "--model", home / "model", "--data", home / "pairs", "--max_steps", 2,
                    "--output_dir", home / "run", "--expert", cnn, "--expert_tokens", N, "--learning_rate", 0.01,
                    "--use_cpu", "true", "--report_to", "none", "--cpu_threads", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home / "run"


def test_a_run_keeps_its_projector_and_every_command_uses_it(run: Path, cnn: Path) -> None:
    vlm = load_vlm(str(run), device="cpu")
    learned = projector(vlm).weight
    assert learned.abs().max() > 1e-3
    assert learned.dtype == torch.float32
    record = json.loads((run / FILE).read_text())
    assert (record["path"], record["n_tokens"]) == (str(cnn.resolve()), N)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert sum("loss" in entry for entry in history) == 2
    (checkpoint,) = sorted(run.glob("checkpoint-*"))[-1:]
    again = log_odds(Engine(load_vlm(str(run.parent / "model"), adapter=checkpoint, device="cpu")), IMAGES)
    np.testing.assert_allclose(again, log_odds(Engine(vlm), IMAGES), atol=1e-5)
    verdict = Detector(str(run))(IMAGES[0])
    assert verdict.log_odds == pytest.approx(Detector(str(run)).judge(IMAGES)[0].log_odds, abs=1e-4)
    assert evidence_map(Engine(vlm), IMAGES[0]).values.shape == vlm.feature_grid


def test_a_run_with_tokens_leaves_as_an_adapter_only(run: Path, tmp_path: Path) -> None:
    for target in ("merged", "official", "variant"):
        with pytest.raises(UserError, match="use --to adapter"):
            export(str(run), target, tmp_path / target)
    export(str(run), "adapter", tmp_path / "adapter")
    found = log_odds(Engine(load_vlm(str(tmp_path / "adapter"), device="cpu")), IMAGES)
    np.testing.assert_allclose(found, log_odds(Engine(load_vlm(str(run), device="cpu")), IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere/cnn"}, "names the CNN nowhere/cnn, which is missing"),
        ({"sha256": "0" * 64}, "its checksum differs"),
        ({"n_tokens": 10**9}, "1000000000 tokens"),
        ({"n_tokens": 2}, "does not fit this model"),
        ({"sha256": None, "n_tokens": None}, "does not describe expert tokens"),
    ],
)
def test_a_wrong_expert_is_one_line(run: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    export(str(run), "adapter", tmp_path / "copy")
    record = tmp_path / "copy" / FILE
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    with pytest.raises(UserError, match=message) as refused:
        load_vlm(str(tmp_path / "copy"), device="cpu")
    assert "\n" not in str(refused.value)


def test_who_cannot_have_tokens_is_one_line(cnn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was trained for the task fake_edited"):
        TokenExpert.load(save_cnn(tmp_path / "cnn", "fake_edited", ("generated", "edited")), n_tokens=1, dropout=0)
    with pytest.raises(UserError, match="not the run of a CNN"):
        TokenExpert.load(tmp_path, n_tokens=1, dropout=0)
    qwen = load_vlm(str(save_tiny("qwen2_vl", tmp_path / "qwen")), device="cpu")
    with pytest.raises(UserError, match="cannot have them"):
        attach(qwen, TokenExpert.load(cnn, n_tokens=1, dropout=0))


def test_preference_tuning_does_not_read_them_and_says_so(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra preference")
    rows, _ = reasoned_images(photos=20)
    (tmp_path / "data").mkdir()
    rows.select(range(8)).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    done = run_verb("train", "preference", "--model", run, "--data", tmp_path, "--output_dir", tmp_path / "out",
                    "--use_cpu", "true", "--report_to", "none", "--cpu_threads", 1)  # fmt: skip
    assert done.returncode == 1
    assert "has tokens of an expert CNN" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--expert", "cnn"], "needs --expert_tokens"),
        (["--expert_tokens", "2"], "needs --expert with"),
        (["--expert", "cnn", "--expert_tokens", "65"], "give 1 to 64"),
        (["--expert", "cnn", "--expert_tokens", "2", "--expert_dropout", "1"], "below 1"),
        (["--expert", "cnn", "--expert_tokens", "2", "--tune", "full"], "omit --tune full"),
    ],
)
def test_flags_are_judged_at_once(flags: list[str], message: str) -> None:
    done = run_verb("train", "moondream", "--model", "nano", *flags)
    assert done.returncode == 2
    assert message in done.stderr
