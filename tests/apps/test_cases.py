"""Cases: what stands in them, that a changed byte anywhere is found, and that nothing is left half written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from tests.apps.conftest import make_photo
from tests.pages.test_page import assert_self_contained
from vlm_detect.apps.cases import CaseOptions
from vlm_detect.apps.limits import NOT_FOR
from vlm_detect.apps.scan import scan
from vlm_detect.apps.signatures import read_private_key
from vlm_detect.apps.traces import trace_run
from vlm_detect.apps.verify import verify_case
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.witnesses import Expert

pytest.importorskip("cryptography", reason="needs the extra sign")
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def save_key(path: Path, form: str = "PKCS8") -> Path:
    """A private key at `path`, and its public half at `path`.pub."""
    key = Ed25519PrivateKey.generate()
    private, none = getattr(pem.PrivateFormat, form), pem.NoEncryption()
    path.write_bytes(key.private_bytes(pem.Encoding.PEM, private, none))
    kind = (pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    if form == "OpenSSH":
        kind = (pem.Encoding.OpenSSH, pem.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(*kind))
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_key(tmp_path_factory.mktemp("keys") / "key.pem")


@pytest.fixture(scope="module")
def made(detector: Detector, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a signed case about them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    for i in range(2):
        make_photo(i).save(folder / "photos" / f"{i}.png")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    options = CaseOptions(folder / "case", read_private_key(key), reviewer="A. Reviewer")
    scan(detector, [str(folder / "photos")], case=options)
    return folder


@pytest.fixture
def case(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "case", tmp_path / "case")


def test_what_stands_in_a_case(made: Path, detector: Detector) -> None:
    assert sorted(path.name for path in (made / "case").iterdir()) == [
        "case.html",
        "case.json",
        "case.sha256",
        "case.sig",
    ]
    assert list(made.glob(".*")) == []
    record = json.loads((made / "case" / "case.json").read_text())
    assert record["may_not_be_used_for"] == list(NOT_FOR)
    assert record["reviewer"]["name"] == "A. Reviewer"
    assert record["operating_point"]["threshold"] == detector.calibration.threshold
    assert record["run"]["files"].keys() >= {"config.json", "model.safetensors"}
    for name, digest in record["run"]["files"].items():
        assert sha256((Path(detector.name) / name).read_bytes()).hexdigest() == digest
    assert (record["calibration"], record["dataset"], record["baselines"]) == (None, None, None)
    for image in record["images"]:
        assert sha256(Path(image["path"]).read_bytes()).hexdigest() == image["sha256"]
        assert "claims" in image
    html = (made / "case" / "case.html").read_text()
    assert_self_contained(html)
    for text in (*NOT_FOR, "A. Reviewer", record["signature"]["public_key"], record["run"]["files"]["config.json"]):
        assert text in html


def test_the_run_its_calibration_dataset_and_baselines_are_named(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    for folder, files in {
        run: {
            "run.json": {"config": {"data": str(data), "model": "nano"}, "data_sha256": {"a.parquet": "abc"}},
            "calibration.json": {"threshold": 0.5},
            "eval/summary.json": {"n": 7, "accuracy": 0.75, "floors": {"longest": 0.625}},
        },
        data: {"run.json": {"written": "2026", "versions": {"vlm-detect": "0.1"}}, "audit.json": {"findings": ["PNG"]}},
    }.items():
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(content))
    make_photo(1).save(tmp_path / "a.png")
    monkeypatch.setattr(detector, "name", str(run))
    scan(detector, [str(tmp_path / "a.png")], case=CaseOptions(tmp_path / "case"))
    record = json.loads((tmp_path / "case" / "case.json").read_text())
    digest = sha256((run / "calibration.json").read_bytes()).hexdigest()
    assert record["calibration"]["sha256"] == digest
    assert record["dataset"]["files"] == {"a.parquet": "abc"}
    assert (record["dataset"]["version"], record["dataset"]["findings"]) == ("0.1", ["PNG"])
    assert record["baselines"]["blind"] == {"longest": 0.625}
    html = (tmp_path / "case" / "case.html").read_text()
    assert all(text in html for text in (digest, "longest 0.625", "accuracy 0.750", "not signed"))


def test_the_expert_is_the_one_that_was_asked(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace_run(detector).run["expert"] is None
    stand_in = Expert(None, ("runs/other_cnn", "abc"))
    monkeypatch.setattr(detector, "witnesses", replace(detector.witnesses, expert=stand_in))
    assert trace_run(detector).run["expert"] == {"path": "runs/other_cnn", "sha256": "abc"}


def test_an_untouched_case_verifies(case: Path, made: Path, key: Path) -> None:
    assert "signed by the key that the case itself names" in str(verify_case(case))
    found = verify_case(case, public_key=key.with_suffix(".pub"), images=made / "photos")
    assert (found.images, found.not_here) == (3, 0)
    assert found.signed_by.startswith("signed by ")


@pytest.mark.parametrize("name", ["case.json", "case.html", "case.sha256", "case.sig"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_changed_byte_is_found(case: Path, name: str, place: float) -> None:
    data = bytearray((case / name).read_bytes())
    data[int(place * len(data)) if place > 0 else int(place)] ^= 1
    (case / name).write_bytes(data)
    with pytest.raises(UserError, match=r"has changed|is missing") as error:
        verify_case(case)
    assert name in str(error.value)


def test_the_verb_names_the_file_in_one_line(case: Path) -> None:
    verb = [sys.executable, "-m", "vlm_detect", "verify", str(case)]
    done = subprocess.run(verb, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{case}: the case is as it was written; 3 of 3 images")
    with (case / "case.html").open("ab") as file:
        file.write(b" ")
    done = subprocess.run(verb, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {case / 'case.html'}: has changed")


def test_checksums_that_were_written_again_are_found_by_the_signature(case: Path) -> None:
    """Anyone can write checksums; the page is bound to the record, and the record to the key."""
    for name in ("case.html", "case.json"):
        (case / name).write_text((case / name).read_text().replace("real", "rael"))
        sums = (f"{sha256((case / one).read_bytes()).hexdigest()}  {one}\n" for one in ("case.html", "case.json"))
        (case / "case.sha256").write_text("".join(sums))
        with pytest.raises(UserError, match=r"case.html: is not the page|case.sig: is not the signature"):
            verify_case(case)


def test_a_signature_that_is_missing_or_of_another_key(case: Path, tmp_path: Path) -> None:
    other = save_key(tmp_path / "other.pem").with_suffix(".pub")
    with pytest.raises(UserError, match=r"case.sig: is not the signature of case.json by .*other.pub"):
        verify_case(case, public_key=other)
    (case / "case.sig").unlink()
    with pytest.raises(UserError, match=r"case.sig: is missing"):
        verify_case(case)


def test_images_are_checked_where_they_are(case: Path, made: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(made / "photos", tmp_path / "elsewhere")
    make_photo(7).save(photos / "1.png")
    with pytest.raises(UserError, match=r"1.png: has changed since it was judged"):
        verify_case(case, images=photos)
    (photos / "1.png").unlink()
    with pytest.raises(UserError, match=r"1.png: is missing"):
        verify_case(case, images=photos)


def test_a_case_without_a_key_is_not_signed(detector: Detector, tmp_path: Path) -> None:
    make_photo(1).save(tmp_path / "a.png")
    scan(detector, [str(tmp_path / "a.png")], case=CaseOptions(tmp_path / "case"))
    (tmp_path / "a.png").unlink()
    assert "not signed" in str(found := verify_case(tmp_path / "case"))
    assert (found.images, found.not_here) == (0, 1)
    with pytest.raises(UserError, match="was never signed"):
        verify_case(tmp_path / "case", public_key=save_key(tmp_path / "k.pem").with_suffix(".pub"))
    with pytest.raises(UserError, match="is there already and not empty"):
        scan(detector, [str(tmp_path)], case=CaseOptions(tmp_path / "case"))


def test_rows_and_a_page_next_to_a_case(detector: Detector, tmp_path: Path) -> None:
    make_photo(1).save(tmp_path / "a.png")
    for name in ("rows.csv", "rows.json", "page.html"):
        scan(detector, [str(tmp_path / "a.png")], out=tmp_path / name, case=CaseOptions(tmp_path / f"case_{name}"))
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 1
    assert "<tr data-label" in (tmp_path / "page.html").read_text()


def test_nothing_is_left_of_a_case_that_cannot_be_written(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    make_photo(1).save(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr("vlm_detect.apps.cases.checksums", full)
        with pytest.raises(UserError, match=r"--case .*No space left on device; the verdicts are kept"):
            scan(detector, [str(tmp_path / "a.png")], case=CaseOptions(tmp_path / "case"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".case.rows.jsonl", "a.png"]
    scan(detector, [str(tmp_path / "a.png")], case=CaseOptions(tmp_path / "case"))
    verify_case(tmp_path / "case")


def test_keys_of_other_kinds(tmp_path: Path) -> None:
    ssh = save_key(tmp_path / "id.pem", form="OpenSSH")
    assert read_private_key(ssh)
    (tmp_path / "text").write_text("no key")
    ec = generate_private_key(SECP256R1())
    kinds = {"ec": pem.NoEncryption(), "locked": pem.BestAvailableEncryption(b"word")}
    for name, encryption in kinds.items():
        signer = ec if name == "ec" else Ed25519PrivateKey.generate()
        data = signer.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption)
        (tmp_path / name).write_bytes(data)
    refused = {
        "text": "no private key",
        "ec": "is no Ed25519 key",
        "locked": "has a passphrase",
        "gone": "No such file",
    }
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            read_private_key(tmp_path / name)


def test_openssl_verifies_the_signature(case: Path, key: Path) -> None:
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl")
    files = ["-inkey", key.with_suffix(".pub"), "-in", case / "case.json", "-sigfile", case / "case.sig"]
    done = subprocess.run([openssl, "pkeyutl", "-verify", "-pubin", "-rawin", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
