"""A set of generated images together with photos from elsewhere, for sets that are published without real images.

images = WithPhotos(open_image_set("xaigd", "hub", Selection(limit=500)), "photos/", limit=1000)

There is a photo for each image if there are enough; the photos are divided over the splits as the images are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vlm_detect.data.image_sets import ImageSet
from vlm_detect.data.selection import Entry
from vlm_detect.data.sources import open_source, text_digest
from vlm_detect.images.decode import ImageRejected


class WithPhotos:
    """`images`, then the first photos of the source `photos`, labelled real; with a `limit`, at most so many in all."""

    def __init__(self, images: ImageSet, photos: str, limit: int | None = None) -> None:
        self._images, self._first = images, len(images.entries)
        wanted = self._first if limit is None else min(self._first, limit - self._first)
        self._photos = open_source(photos, wanted)
        places = [Entry(f"{photos}#{i}", "real", split=images.entries[i].split) for i in range(len(self._photos))]
        self.entries: Sequence[Entry] = [*images.entries, *places]
        self.skipped = images.skipped + self._photos.skipped
        self.reading = f"{images.reading}; {len(places)} photos from {photos} = real"
        self.fingerprint = text_digest([images.fingerprint, self._photos.fingerprint])

    def read(self, start: int, stop: int) -> Iterator[tuple[Entry, bytes | ImageRejected]]:
        yield from self._images.read(min(start, self._first), min(stop, self._first))
        first, last = max(start - self._first, 0), min(stop, len(self.entries)) - self._first
        if last <= first:
            return
        entries = self.entries[self._first + first : self._first + last]
        for entry, photo in zip(entries, self._photos.read(first, last), strict=True):
            if isinstance(photo, tuple):
                yield replace(entry, where=photo[0]), photo[1]
            else:
                entry = replace(entry, where=photo.path_or_id, group=photo.group, licence=photo.licence)
                yield replace(entry, object_class=photo.object_class or ""), photo.data
