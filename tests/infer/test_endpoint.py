import math
from pathlib import Path

import pytest
from PIL import Image

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark
from tests.infer.fake_endpoint import fake_endpoint
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.score import score
from vlm_detect.benchmark.summary import summarise
from vlm_detect.errors import UserError
from vlm_detect.infer.endpoint import Endpoint, first_token_scores, without_refused
from vlm_detect.infer.engine import Ask

RED, BLUE = Image.new("RGB", (9, 8), "red"), Image.new("RGB", (8, 8), "blue")
WORDS = ("Real", "Fake")


def test_scores_and_answers() -> None:
    with fake_endpoint() as server:
        endpoint = Endpoint(server.url, "fake-vlm")
        assert endpoint.gives_logprobs
        asked = len(server.requests)
        ((red,), (blue,)) = endpoint.score([RED, BLUE], [[Ask("Real or Fake?", WORDS)]] * 2)
        assert [math.exp(c.logprob) for c in red] == pytest.approx([0.1, 0.8])
        assert [math.exp(c.logprob) for c in blue] == pytest.approx([0.8, 0.1])
        # What was just scored is not asked again.
        assert endpoint.generate([RED, BLUE], [["Real or Fake?"], ["Real or Fake?"]]) == [["Fake"], ["Real"]]
        assert len(server.requests) == asked + 2
        assert endpoint.generate([RED], [["Is it Real or Fake?"]], 96) == [["Fake"]]
        assert server.requests[-1]["max_tokens"] == 96
        assert server.requests[-1]["temperature"] == 0


def test_a_whole_benchmark(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_benchmark(tmp_path, [*verdict_rows(tmp_path), choice_row(tmp_path)]))
    with fake_endpoint() as server:
        endpoint = Endpoint(server.url, "fake-vlm")
        results = [r for batch in score(benchmark, endpoint, ask=Ask) for r in batch]
    summary = summarise(results, resamples=20)
    assert summary["accuracy"] == summary["generate"]["accuracy"] == summary["rotation_consistency"] == 1


def test_without_logprobs_only_answers_are_scored(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_benchmark(tmp_path, verdict_rows(tmp_path)))
    with fake_endpoint(logprobs=False) as server:
        endpoint = Endpoint(server.url, "fake-vlm")
        assert not endpoint.gives_logprobs
        results = [r for batch in score(benchmark, endpoint, ask=Ask, logprob=False) for r in batch]
    assert {r.scoring for r in results} == {"generate"}
    assert summarise(results, resamples=20)["accuracy"] == 1


def test_unsupported_options_are_detected() -> None:
    with fake_endpoint(refused=("max_tokens", "temperature", "logprobs")) as server:
        endpoint = Endpoint(server.url, "fake-vlm")
        assert set(endpoint.options) == {"max_completion_tokens"}
        assert endpoint.generate([RED], [["Real or Fake?"]], 7) == [["Fake"]]
        assert server.requests[-1]["max_completion_tokens"] == 7
    assert without_refused({"top_logprobs": 20, "logprobs": True}, "top_logprobs: at most 5")["top_logprobs"] == 5
    assert without_refused({"max_tokens": 1}, "images are not supported") is None


def test_rate_limits_and_server_errors_are_retried() -> None:
    with fake_endpoint() as server:
        endpoint = Endpoint(server.url, "fake-vlm", retries=3)
        server.failures.extend([(429, "slow down"), (429, "slow down")])
        assert endpoint.generate([RED], [["Real or Fake?"]]) == [["Fake"]]
        assert not server.failures


def test_permanent_errors_are_one_line() -> None:
    with fake_endpoint(key="secret") as server:
        with pytest.raises(UserError, match="refuses the key"):
            Endpoint(server.url, "fake-vlm", api_key="wrong")
        with pytest.raises(UserError, match="has no model 'other'"):
            Endpoint(server.url, "other", api_key="secret")
        endpoint = Endpoint(server.url, "fake-vlm", api_key="secret", retries=0)
        server.failures.append((429, "slow down"))
        with pytest.raises(UserError, match="run the same command again"):
            endpoint.generate([RED], [["Real or Fake?"]])
        # One question that the server will not take is an answer that cannot be read.
        server.failures.append((400, "content policy"))
        ((refused,),) = endpoint.generate([RED], [["Real or Fake?"]])
        assert refused.startswith("(refused: ")
    with pytest.raises(UserError, match="does not answer"):
        Endpoint(server.url, "fake-vlm", retries=0)
    with pytest.raises(UserError, match="localhost:8000: not a URL"):
        Endpoint("localhost:8000", "fake-vlm", retries=0)


def test_first_tokens() -> None:
    top = [("Yes", math.log(0.6)), (" yes", math.log(0.2)), ("No", math.log(0.1)), ("\n", math.log(0.05))]
    assert [math.exp(v) for v in first_token_scores(top, ("Yes.", "No."))] == pytest.approx([0.8, 0.1])
    # A token that begins two candidates decides nothing; what is not listed gets the least that is.
    top = [("St", math.log(0.7)), ("Gl", math.log(0.2))]
    found = [math.exp(v) for v in first_token_scores(top, ("StyleGAN", "Stable Diffusion", "Glide"))]
    assert found == pytest.approx([0.2, 0.2, 0.2])
    assert first_token_scores([], ("Yes.", "No.")) == [-math.log(2)] * 2
