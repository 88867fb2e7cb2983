"""Addressed images: listed once in a fixed order, read in parts, from disks and from stores."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.apps.test_scan_shards import png, save_parquet, save_tar
from vlm_detect.data import remote
from vlm_detect.data.item_list import read_group, write_items
from vlm_detect.data.items import Item, list_items, read_items
from vlm_detect.data.sources import SourcePhoto, look_into, open_source
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected


def listed(spec: str | Path, image_column: str = "") -> tuple[list[Item], Counter[str]]:
    skipped = Counter[str]()
    return list(list_items(str(spec), skipped, image_column)), skipped


def read(items: list[Item]) -> dict[str, bytes | str]:
    """Bytes by name, or the reason of a reject."""
    found = {}
    for photo in read_items(items):
        name, data = (photo.path_or_id, photo.data) if isinstance(photo, SourcePhoto) else (photo[0], str(photo[1]))
        found[name] = data
    return found


@pytest.fixture
def store() -> Iterator[str]:
    """A store in memory, with three images, a tar and a note."""
    fs = fsspec.filesystem("memory")
    fs.pipe({f"/bucket/in/{name}.png": png(seed) for seed, name in enumerate(("a", "b", "deep/c"))})
    fs.pipe({"/bucket/in/note.txt": b"note", "/bucket/in/.hidden/x.png": png(9), "/bucket/rows.bin": b"?"})
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


def test_a_folder_is_listed_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in ("b/z.png", "b.png", "b/a/y.png", "a-1.png", "a/x.png", "B.png", "b-/q.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    items, _ = listed(tmp_path)
    paths = look_into(tmp_path).images
    assert paths == sorted(paths)
    photos = list(open_source(str(tmp_path)).read(0, 9))
    assert [item.name for item in items] == [photo.path_or_id for photo in photos] == list(map(str, paths))


def test_members_of_a_tar_are_read_by_their_place(tmp_path: Path) -> None:
    files = {f"deep/{seed}.png": png(seed) for seed in range(5)} | {"0.json": b"{}", "empty.png": b""}
    tar = save_tar(tmp_path / "one.tar", files)
    items, skipped = listed(tar)
    assert skipped == {".json": 1}
    assert [item.name for item in items] == [f"{tar}/{name}" for name in files if name != "0.json"]
    middle = read(items[2:4])
    assert middle == {f"{tar}/deep/{seed}.png": png(seed) for seed in (2, 3)}
    assert read(items)[f"{tar}/empty.png"] == b""


def test_a_folder_of_tars_has_their_members(tmp_path: Path) -> None:
    for number in range(2):
        save_tar(tmp_path / f"{number}.tar", {f"{number}{seed}.png": png(seed) for seed in range(2)})
    items, skipped = listed(tmp_path)
    assert [Path(item.name).name for item in items] == ["00.png", "01.png", "10.png", "11.png"]
    assert not skipped
    assert items == listed(tmp_path / "*.tar")[0]


@pytest.mark.parametrize("harm", ["cut", "compressed", "no tar"])
def test_a_broken_container_is_an_item_with_its_reason(tmp_path: Path, harm: str) -> None:
    whole = save_tar(tmp_path / "whole.tar", {f"{seed}.png": png(seed) * 40 for seed in range(4)})
    broken = tmp_path / "broken.tar"
    if harm == "compressed":
        with tarfile.open(broken, "w:gz") as tar:
            tar.add(whole, "x.png")
    else:
        broken.write_bytes(whole.read_bytes()[:9000] if harm == "cut" else b"?" * 600)
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    for container in (broken, tmp_path / "no.parquet"):
        *before, last = listed(container)[0]
        assert (last.kind, last.name) == ("unreadable", str(container))
        assert (len(before) > 0) == (container == broken and harm == "cut")
        (rejected,) = [photo[1] for photo in read_items([last])]
        assert isinstance(rejected, ImageRejected)


def test_rows_are_read_from_the_row_groups_that_hold_them(tmp_path: Path) -> None:
    table = save_parquet(tmp_path / "rows.parquet", [png(seed) for seed in range(10)])  # in groups of three
    items, _ = listed(table)
    for start, stop in ((0, 10), (2, 4), (7, 10)):
        assert read(items[start:stop]) == {f"{table}#{row}": png(row) for row in range(start, stop)}
    assert read([items[1], items[8]]) == {f"{table}#1": png(1), f"{table}#8": png(8)}
    assert len(listed(table, "image")[0]) == 10
    with pytest.raises(UserError, match=r"contains 1 \.parquet without an image column other"):
        listed(table, "other")


def test_a_container_that_is_gone_costs_its_rows(tmp_path: Path) -> None:
    tar = save_tar(tmp_path / "one.tar", {"a.png": png(0), "b.png": png(1)})
    (tmp_path / "c.png").write_bytes(png(2))
    items = listed(tar)[0] + listed(tmp_path / "c.png")[0]
    tar.unlink()
    found = read(items)
    assert [isinstance(data, bytes) for data in found.values()] == [False, False, True]
    assert all("No such file" in str(found[f"{tar}/{name}.png"]) for name in "ab")


def test_images_of_a_store(store: str, tmp_path: Path) -> None:
    items, skipped = listed(f"{store}/in")
    assert [item.name.rpartition("bucket/")[2] for item in items] == ["in/a.png", "in/b.png", "in/deep/c.png"]
    assert skipped == {".txt": 1}
    assert list(read(items).values()) == [png(0), png(1), png(2)]
    assert [item.name for item in listed(f"{store}/in/*.png")[0]] == [item.name for item in items[:2]]
    fs = fsspec.filesystem("memory")
    tar = save_tar(tmp_path / "one.tar", {f"{seed}.png": png(seed) for seed in range(3)})
    table = save_parquet(tmp_path / "rows.parquet", [png(seed) for seed in range(4)])
    fs.pipe({"/bucket/sets/one.tar": tar.read_bytes(), "/bucket/sets/rows.parquet": table.read_bytes()})
    assert list(read(listed(f"{store}/sets")[0]).values()) == [png(seed) for seed in (0, 1, 2, 0, 1, 2, 3)]
    (tmp_path / "list.txt").write_text(f"one.tar\n{store}/in/b.png\n")
    assert list(read(listed(tmp_path / "list.txt")[0]).values()) == [png(0), png(1), png(2), png(1)]


def test_a_file_of_a_store_that_is_missing_or_large_costs_its_row(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items, _ = listed(f"{store}/in")
    fsspec.filesystem("memory").rm("/bucket/in/b.png")
    assert [isinstance(data, bytes) for data in read(items).values()] == [True, False, True]
    with pytest.raises(ImageRejected, match=r"too_large: \d+ bytes, at most 10"):
        remote.read_file(items[0].place, max_bytes=10)


def test_a_store_that_stops_answering_ends_the_work(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items, _ = listed(f"{store}/in")
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    answers: list[object] = [ConnectionResetError("gone"), TimeoutError("late"), png(0)]

    def cat_file(self: object, path: str, **_options: object) -> object:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", cat_file)
    assert remote.read_file(items[0].place) == png(0)
    answers += [ConnectionResetError("gone")] * 3
    with pytest.raises(UserError, match=r"a\.png: cannot be reached \(gone\); check the name, the network"):
        remote.read_file(items[0].place)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("memory://bucket/none", "nothing is found there"),
        ("nosuch://bucket/x", r"nosuch://bucket/x: .*nosuch"),
        ("memory://bucket/in/note.txt.gz", "nothing is found there"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_line(spec: str, said: str, store: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        listed(spec)
    assert "\n" not in str(caught.value)


def test_a_store_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object, **_options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"s3://b/x: this store needs a package.*pip install 'vlm-detect\[s3\]'"):
        listed("s3://b/x")


def test_the_list_of_a_scan_is_read_in_parts(tmp_path: Path) -> None:
    items = [Item("file", f"{i}.png", os.fsdecode(b"/odd/\xff%d.png" % i)) for i in range(5)]
    items.append(Item("member", "t.tar/x.png", "/t.tar", 512, 77))
    n, digest = write_items(tmp_path / "items.parquet", iter(items), 4)
    assert (n, write_items(tmp_path / "again.parquet", items, 3)[1] == digest) == (6, False)
    assert write_items(tmp_path / "again.parquet", items, 4) == (6, digest)
    assert read_group(tmp_path / "items.parquet", 0) == items[:4]
    assert read_group(tmp_path / "items.parquet", 1) == items[4:]
