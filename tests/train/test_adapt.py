"""vlm-detect adapt: a generator that the run takes for photos is learned from 60 images; the old one stays known."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.infer.test_witnesses import toys
from tests.train.toys import save_tiny_model, save_toy_pairs, toy_image
from vlm_detect import Detector, cli
from vlm_detect.errors import UserError
from vlm_detect.infer.head import Head
from vlm_detect.train.adapt import added, choose_weight
from vlm_detect.train.fit_head import Read


def new_image(generated: bool, rng: np.random.Generator) -> Image.Image:
    """As dark as the photos that the run knows; generated ones have stripes."""
    photo = np.asarray(toy_image(False, rng)).astype(int)
    if generated:
        photo[:, ::2] += 60
        photo[:, 1::2] -= 60
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))


def save_new(folder: Path, n_real: int = 30, n_fake: int = 30, seed: int = 5) -> Path:
    rng = np.random.default_rng(seed)
    for name, n in (("real", n_real), ("fake", n_fake)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            new_image(name == "fake", rng).save(folder / name / f"{i}.png")
    return folder


def accuracy(run: Path, images: list[Image.Image], generated: np.ndarray) -> float:
    verdicts = Detector(str(run)).judge(images)
    return float(np.mean(np.array([one.p_fake > one.threshold for one in verdicts]) == generated))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    save_toy_pairs(folder / "pairs", n_train=40, n_validation=40)
    save_tiny_model(folder / "run")
    cli.run(["fit-head", str(folder / "run"), "--data", str(folder / "pairs")])
    save_new(folder / "new")
    return folder


def test_new_images_are_learned_and_old_ones_stay_known(home: Path, capsys) -> None:
    files = {path.name: path.read_bytes() for path in (home / "run").iterdir()}
    cli.run(["adapt", str(home / "run"), str(home / "new"), "--out", str(home / "adapted")])
    rng = np.random.default_rng(11)
    generated = np.arange(40) % 2 == 1
    new = [new_image(bool(one), rng) for one in generated]
    assert accuracy(home / "run", new, generated) < 0.7
    assert accuracy(home / "adapted", new, generated) > 0.9
    assert accuracy(home / "adapted", *toys(40, seed=9)) > 0.9
    assert {path.name: path.read_bytes() for path in (home / "run").iterdir()} == files

    shown = re.findall(r"(before|after) +(new|old), (\d+) +([\d.]+)", capsys.readouterr().out)
    found = {(when, which): (int(n), float(right)) for when, which, n, right in shown}
    assert {key[1]: n for key, (n, _) in found.items()} == {"new": 20, "old": 40}
    assert found["after", "new"][1] > found["before", "new"][1] + 0.2
    after = Head.load(home / "adapted")
    assert after is not None
    assert after.about["n_new"] == 60


def test_the_weight_of_new_images_is_cross_validated_on_both_sets() -> None:
    rng = np.random.default_rng(0)

    def read(n: int, axis: int, apart: float) -> Read:
        generated = np.arange(n) % 2 == 1
        features = rng.normal(size=(n, 3))
        features[:, axis] += apart * generated
        return Read(features, {}, generated)

    head = Head.fit(*(lambda one: (one.features, one.generated))(read(4000, 0, 3.0)))
    old, unknown, alike = read(400, 0, 3.0), read(60, 1, 4.0), read(60, 0, 3.0)
    weight = choose_weight(head, unknown, old)
    assert weight >= 10, "4,000 old images outvote 60 that count once"
    learned = added(head, unknown, weight)
    fresh = read(400, 1, 4.0)
    ranked = [roc_auc_score(fresh.generated, one.log_odds(fresh.features)) for one in (head, learned)]
    assert ranked[0] < 0.7
    assert ranked[1] > 0.85
    assert choose_weight(head, alike, old) < weight


def test_a_table_of_paths_and_labels_works_too(home: Path, tmp_path: Path) -> None:
    with (tmp_path / "new.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows(
            [str(path.relative_to(home)), path.parent.name] for path in sorted((home / "new").rglob("*.png"))
        )
    shutil.copytree(home / "new", tmp_path / "new")
    cli.run(["adapt", str(home / "run"), str(tmp_path / "new.csv"), "--out", str(tmp_path / "adapted")])
    assert (tmp_path / "adapted" / "fusion.json").is_file()


def test_refused_inputs(home: Path, tmp_path: Path) -> None:
    save_new(tmp_path / "few", 20, 20)
    save_new(tmp_path / "lopsided", 45, 9)
    save_tiny_model(tmp_path / "plain")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    run, new = str(home / "run"), str(home / "new")
    refused = {
        "at least 50 in all": [run, str(tmp_path / "few")],
        "45 real and 9 generated": [run, str(tmp_path / "lopsided")],
        "has no head.safetensors to adapt": [str(tmp_path / "plain"), new],
        "give a new folder": [run, new, "--out", str(tmp_path / "full")],
        "give a dataset like them with --old": [run, new, "--old", str(tmp_path / "nothing")],
    }
    for message, arguments in refused.items():
        given = arguments if "--out" in arguments else [*arguments, "--out", str(tmp_path / "out")]
        with pytest.raises(UserError, match=message):
            cli.run(["adapt", *given])
    assert not (tmp_path / "out").exists()
