"""Keys in a file: what the file may hold, rate limits, and what clients see of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from tests.apps.conftest import serving
from vlm_detect.apps.errors import ApiError
from vlm_detect.apps.keys import Keys, read_keys
from vlm_detect.apps.settings import ServerSettings, check_settings
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector

SECRET = "secret-of-the-newsroom"


def keys_file(folder: Path, text: str) -> Path:
    (folder / "keys.toml").write_text(text, encoding="utf-8")
    return folder / "keys.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no keys: give one as [NAME]"),
        ("[a", "not TOML"),
        ('a = "b"', "[a]: not a table"),
        ("[a]", "[a]: give either key or sha256"),
        (f'[a]\nkey = "{SECRET}"\nsha256 = "00"', "[a]: give either key or sha256"),
        (f'[a]\nkey = "{SECRET}"\nlimits = "1/second"', "[a]: limits: unknown; give key or sha256, and limit"),
        ("[a]\nkey = 5", "[a]: key is not a string: put it in quotes"),
        ('[a]\nkey = " "', "[a]: key is empty"),
        ('[a]\nkey = "schlüssel"', "[a]: key cannot be sent in a header"),
        ('[a]\nsha256 = "abc"', "[a]: sha256 is not a SHA-256"),
        (f'["a b"]\nkey = "{SECRET}"', "[a b]: a name has 1 to 40 letters"),
        *(
            (f'[a]\nkey = "{SECRET}"\nlimit = "{limit}"', f"limit '{limit}': give ")
            for limit in ("often", "0/minute", "5/minute;6/hour", "999999/day")
        ),
        (f'[a]\nkey = "{SECRET}"\n[b]\nkey = "{SECRET}"', "[b] has the key of [a]: give it its own"),
    ],
)
def test_a_bad_file_is_one_line_that_shows_no_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as found:
        read_keys(keys_file(tmp_path, text))
    assert message in str(found.value)
    assert "keys.toml" in str(found.value)
    assert SECRET not in str(found.value)


def test_a_missing_file_and_two_kinds_of_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: No such file or directory: give a TOML file of keys"):
        read_keys(tmp_path / "none.toml")
    with pytest.raises(UserError, match="give one of them"):
        check_settings(ServerSettings(api_key="a", api_keys="keys.toml"))
    check_settings(ServerSettings(host="0.0.0.0", api_keys="keys.toml"))


def test_each_key_has_a_limit_of_its_own(tmp_path: Path) -> None:
    hashed = hashlib.sha256(b"archive").hexdigest()
    text = f'[newsroom]\nkey = "{SECRET}"\nlimit = "2/hour"\n[archive]\nsha256 = "{hashed}"\n'
    keys = Keys(read_keys(keys_file(tmp_path, text)))
    assert [keys.name_of(SECRET), keys.name_of("archive")] == ["newsroom", "archive"]
    for _ in range(2):
        keys.count(SECRET)
    with pytest.raises(ApiError) as refused:
        keys.count(SECRET)
    assert (refused.value.status, refused.value.code) == (429, "rate_limited")
    assert 3500 < int(refused.value.headers["Retry-After"]) <= 3600
    for _ in range(5):
        keys.count("archive")
    # Another limit for the same name, or the same name with another key, does not give its requests back.
    keys.replace(read_keys(keys_file(tmp_path, '[newsroom]\nkey = "new"\nlimit = "2/hour"')))
    with pytest.raises(ApiError, match="used up"):
        keys.count("new")
    with pytest.raises(ApiError, match="give a key of this server"):
        keys.name_of(SECRET)


def test_over_http(detector: Detector, tmp_path: Path) -> None:
    text = f'[newsroom]\nkey = "{SECRET}"\nlimit = "2/hour"\n[prometheus]\nkey = "scraper"\n'
    path = keys_file(tmp_path, text)
    with serving(detector, api_keys=str(path)) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        own = {"authorization": f"Bearer {SECRET}"}
        assert http.get("/v1/models").status_code == 401
        answers = [http.get("/v1/models", headers=own) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[-1].json()["error"]["code"] == "rate_limited"
        assert int(answers[-1].headers["retry-after"]) > 3000
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 200
        figures = http.get("/metrics", headers={"authorization": "Bearer scraper"}).text
        assert 'vlm_detect_key_requests_total{key="newsroom",status="200"} 2.0' in figures
        assert 'vlm_detect_key_requests_total{key="newsroom",status="429"} 1.0' in figures
