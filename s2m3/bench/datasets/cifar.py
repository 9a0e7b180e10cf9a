"""CIFAR-10 and CIFAR-100, binary versions (Krizhevsky 2009), of which the 10,000 test pictures are read.

    cifar-10-batches-bin/batches.meta.txt    ten names, one a line
    cifar-10-batches-bin/test_batch.bin      a record: 1 byte label (0 to 9), 3,072 bytes of pixels
    cifar-100-binary/fine_label_names.txt    a hundred names, one a line
    cifar-100-binary/test.bin                a record: 1 byte coarse label, 1 byte fine label (0 to 99), the pixels

A picture has 32 x 32 pixels in three planes, red, green and blue, each row by row. It becomes a PNG file, which loses
nothing. Of CIFAR-100 the fine labels count, as in all published results.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, Record

SIDE = 32
_PIXEL_BYTES = 3 * SIDE * SIDE


def _reader(format_: str, file: str, names: str, *, label_bytes: int) -> Reader:
    return Reader.by_files(lambda top: _open(format_, top / file, top / names, label_bytes), file, names)


def _open(format_: str, file: Path, names: Path, label_bytes: int) -> Dataset:
    classes = tuple(name.replace("_", " ") for name in disk.names(names))
    record_bytes = label_bytes + _PIXEL_BYTES
    try:
        size_bytes = file.stat().st_size
    except OSError as error:
        raise disk.damaged(file, error.strerror or "can't be read") from error
    if not size_bytes or size_bytes % record_bytes:
        problem = f"has {size_bytes} bytes, not a whole number of records of {record_bytes}: truncated"
        raise disk.damaged(file, problem)

    def read(position: int) -> Record:
        with file.open("rb") as stream:
            stream.seek(position * record_bytes)
            data = stream.read(record_bytes)
        if len(data) < record_bytes:
            raise disk.damaged(file, "is truncated", field=f"record {position}")
        label = data[label_bytes - 1]
        if label >= len(classes):
            problem = f"has label {label}, and {names.name} has {len(classes)} names"
            raise disk.damaged(file, problem, field=f"record {position}")
        planes = np.frombuffer(data, np.uint8, offset=label_bytes).reshape(3, SIDE, SIDE)
        return Record(f"{file.name}:{position}", disk.png(np.ascontiguousarray(planes.transpose(1, 2, 0))), label)

    return Dataset(format_, "classification", "image", size_bytes // record_bytes, read, classes)


CIFAR10 = _reader("cifar-10", "test_batch.bin", "batches.meta.txt", label_bytes=1)
CIFAR100 = _reader("cifar-100", "test.bin", "fine_label_names.txt", label_bytes=2)
