"""Which splits of a dataset a run opens: what --mix adds needs no validation split, and loses none."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.train.toys import toy_images
from vlm_detect.errors import UserError
from vlm_detect.models import registry
from vlm_detect.train.command import Options
from vlm_detect.train.data import open_splits, open_training
from vlm_detect.train.moondream import MoondreamOptions
from vlm_detect.train.program import finetune


def test_datasets_used_only_for_training_need_only_a_training_split(tmp_path):
    (tmp_path / "data").mkdir()
    toy_images(["real", "generated"] * 2).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert len(open_training(str(tmp_path))) == 4
    assert len(open_training(str(tmp_path), limit=3)) == 3
    with pytest.raises(UserError, match="no validation split"):
        open_splits(str(tmp_path))


def test_conversations_used_only_for_training_are_not_held_out(tmp_path):
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]
    records = []
    for i in range(10):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
        generator = "natural" if i % 2 else "glide"
        records.append({"image": f"{i}.png", "conversations": turns, "metadata": {"generator": generator}})
    (tmp_path / "data.json").write_text(json.dumps(records))
    assert len(open_training(str(tmp_path / "data.json"))) == 10
    train, validation = open_splits(str(tmp_path / "data.json"))
    assert (len(train), len(validation)) == (8, 2)
    train, _ = open_splits(str(tmp_path / "data.json"), limit=5)
    assert len(train) == 5


@pytest.mark.parametrize("base", ["nobody/no-such-model", "./no_such_folder"])
def test_the_model_is_looked_up_before_pairs_are_made_for_it(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def unreachable(*arguments, **options):
        raise OSError("there is no network")

    monkeypatch.setattr(registry, "model_info", unreachable)
    with pytest.raises(UserError, match=base):
        finetune(Options.parse(["--model", base], doc=None, training=MoondreamOptions))
    assert not (tmp_path / "data").exists()
