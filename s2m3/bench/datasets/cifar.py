"""Records of both CIFARs: labels, then 32 x 32 pixels in three planes. They become PNG files, which lose nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, Record, disk

SIDE = 32
_PIXEL_BYTES = 3 * SIDE * SIDE


def dataset(format_: str, file: Path, names: Path, *, label_bytes: int) -> Dataset:
    """Open one file of records; the last label byte counts.

    Raises:
        BadFile: a file is missing, or its length is no multiple of a record's.
    """
    classes = tuple(name.replace("_", " ") for name in disk.names(names))
    record_bytes = label_bytes + _PIXEL_BYTES
    try:
        size_bytes = file.stat().st_size
    except OSError as error:
        raise BadFile(file=str(file), problem=error.strerror or "can't be read", fix=disk.AGAIN) from error
    if not size_bytes or size_bytes % record_bytes:
        problem = f"has {size_bytes} bytes, which is no whole number of records of {record_bytes}: truncated"
        raise BadFile(file=str(file), problem=problem, fix=disk.AGAIN)

    def read(position: int) -> Record:
        with file.open("rb") as stream:
            stream.seek(position * record_bytes)
            data = stream.read(record_bytes)
        if len(data) < record_bytes:
            raise BadFile(file=str(file), field=f"record {position}", problem="is truncated", fix=disk.AGAIN)
        label = data[label_bytes - 1]
        if label >= len(classes):
            problem = f"has label {label}, and {names.name} has {len(classes)} names"
            raise BadFile(file=str(file), field=f"record {position}", problem=problem, fix=disk.AGAIN)
        planes = np.frombuffer(data, np.uint8, offset=label_bytes).reshape(3, SIDE, SIDE)
        return Record(f"{file.name}:{position}", disk.png(np.ascontiguousarray(planes.transpose(1, 2, 0))), label)

    return Dataset(format_, "classification", "image", size_bytes // record_bytes, read, classes)
