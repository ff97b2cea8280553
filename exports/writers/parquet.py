"""Parquet: money as decimal128(38, 4), times as timestamp[us, UTC], UUIDs as text, zstd.

Each field carries the unit and the meaning of its column. Text is as it is: nothing that reads Parquet runs it.
"""

from collections.abc import Iterable, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from exports.datasets import Column, Row, Type

from . import Progress, Written, batches

ROWS_IN_A_GROUP = 100_000  # some ten MB, held as Arrow until they are written; a reader skips or loads them together

_TYPES = {
    Type.TEXT: pa.string(),
    Type.INTEGER: pa.int64(),
    Type.DECIMAL: pa.decimal128(38, 4),
    Type.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    Type.UUID: pa.string(),
    Type.DATE: pa.date32(),
}


def write(
    columns: Sequence[Column], rows: Iterable[Row], target: BinaryIO, progress: Progress | None = None
) -> Written:
    written = Written()
    schema = pa.schema([_field(column) for column in columns])
    with pq.ParquetWriter(target, schema, compression="zstd") as file:
        group: list[pa.RecordBatch] = []
        held = 0
        for batch in batches(columns, rows, written, progress):
            values = zip(*batch, strict=True)
            group.append(pa.record_batch([pa.array(v, f.type) for v, f in zip(values, schema, strict=True)], schema))
            held += len(batch)
            if held >= ROWS_IN_A_GROUP:
                file.write_table(pa.Table.from_batches(group), row_group_size=ROWS_IN_A_GROUP)
                group, held = [], 0
        if group:
            file.write_table(pa.Table.from_batches(group), row_group_size=ROWS_IN_A_GROUP)
    return written


def _field(column: Column) -> pa.Field:
    return pa.field(column.name, _TYPES[column.type], metadata={"unit": column.unit, "meaning": column.meaning})
