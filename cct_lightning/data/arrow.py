"""Images in tables: Parquet, and what Hugging Face's `datasets` saves to disk (Arrow). pyarrow, the extra ``arrow``, reads both."""

import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cct_lightning.data.files import Array
from cct_lightning.data.folders import Table
from cct_lightning.data.members import Packed
from cct_lightning.data.packed import INSTALL, Labelled, as_names, as_table, copy_path, from_names, keep, read_kept, replacing, shards
from cct_lightning.errors import InputError
from cct_lightning.wording import reason

IMAGES, LABELS = ("image", "img"), ("label", "labels", "fine_label", "cls", "class")  # columns, of which the first that is there is taken


def _pyarrow(module: str = "") -> Any:
    try:
        return import_module(f"pyarrow{module}")
    except ImportError:
        raise InputError(f"Parquet and Arrow files need pyarrow, which is not installed: {INSTALL}") from None


def read_parquet(root: Path) -> Table:
    """Reads Parquet files, or one: an image in each row, as bytes or as {bytes, path}, and its label as text or a whole number.

    Parquet compresses many images together, so that none could be read alone: the images' files are copied once, as they are, into ``CCT_HOME``,
    and anew when the Parquet file's size or time has changed. The files may be named by split, see ``packed.shards``.

    Raises:
        InputError: No file, one that is damaged or has not the columns, pyarrow is missing, or there is no room for the copy.
    """
    found: dict[str, Labelled] = {}
    names: list[str] | None = None
    for split, files in shards(root, "parquet").items():
        for file in files:
            schema = _schema(file)
            names = _same_names(names, schema, file)
            images, labels = found.setdefault(split, ([], []))
            more, told = _of_parquet(file, schema)
            images += more
            labels += told
    return as_table(found, root, names)


def read_saved(root: Path) -> Table:
    """Reads what `datasets` saved with ``save_to_disk``: a data set of one split, or of several, images where they lie in its Arrow files.

    Raises:
        InputError: It is no such folder, the columns are not there, or pyarrow is missing.
    """
    splits = [str(name) for name in _said(root / "dataset_dict.json").get("splits", [])] if (root / "dataset_dict.json").is_file() else []
    found: dict[str, Labelled] = {}
    names: list[str] | None = None
    for split, folder in [(name, root / name) for name in splits] or [("train", root)]:
        split = {"validation": "val", "valid": "val"}.get(split, split)
        images, labels = found.setdefault(split, ([], []))
        for about in _said(folder / "state.json").get("_data_files", []):
            file = folder / str(about.get("filename"))
            for schema, batch, base in _batches(file):
                names = _same_names(names, schema, file)
                column, label = (batch.column(name) for name in _columns(schema, file))
                images += _places(column, file, base, len(images))
                labels += _labels(label, file)
    if "train" not in found:
        raise InputError(f"{root} has the splits {', '.join(found)}, and none is called train.")
    return as_table({split: part for split, part in found.items() if split in ("train", "val", "test")}, root, names)


def _said(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} can't be read ({reason(error, 80)}): data.dataset=huggingface takes a folder of `save_to_disk`.") from None
    return said if isinstance(said, dict) else {}


def _schema(file: Path) -> Any:
    try:
        return _pyarrow(".parquet").read_schema(file)
    except (OSError, _pyarrow().ArrowException) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} can't be read ({reason(error, 80)}): it is damaged, truncated or of another kind. Copy it anew.")


def _columns(schema: Any, file: Path) -> tuple[str, str]:
    """Returns the names of the columns of images and of labels."""
    image, label = (next((name for name in names if name in schema.names), None) for names in (IMAGES, LABELS))
    if image is None or label is None:
        raise InputError(
            f"{file} has the columns {', '.join(schema.names)[:100]}; it must have {'image' if image is None else 'label'}"
            f" ({', '.join((IMAGES if image is None else LABELS)[1:])} will do)."
        )
    return image, label


def _class_names(schema: Any) -> list[str] | None:
    """Returns the names of the classes that Hugging Face's features tell; None where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = next(features[name]["names"] for name in LABELS if name in features)
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError, StopIteration):
        return None


def _same_names(known: list[str] | None, schema: Any, file: Path) -> list[str] | None:
    """Returns the names of the classes, which no two files number otherwise."""
    names = _class_names(schema)
    if known is not None and names is not None and names != known:
        raise InputError(
            f"{file} numbers the classes {', '.join(names)[:80]}, and a file before it {', '.join(known)[:80]}.\n"
            "  A number would mean two of them: save all files with the same names in the same order."
        )
    return known or names


def _labels(column: Any, file: Path) -> list[str | int]:
    values: list[str | int] = column.to_pylist()
    if odd := [value for value in values if isinstance(value, bool) or not isinstance(value, (int, str))]:
        raise InputError(f"{file} has the label {str(odd[0])[:60]}: a label is text or a whole number, one for each image.")
    return values


def _parts(column: Any, file: Path) -> tuple[Any, Sequence[str | None]]:
    """Returns the bytes of a column of images, and the path of each, where there is one."""
    types, kind = _pyarrow().types, column.type
    if types.is_struct(kind) and {"bytes", "path"} <= {kind.field(number).name for number in range(kind.num_fields)}:
        return column.field("bytes"), column.field("path").to_pylist()
    if types.is_binary(kind) or types.is_large_binary(kind):
        return column, [None] * len(column)
    raise InputError(f"{file} has images of the type {str(kind)[:80]}: they must be files, as bytes or as {{bytes, path}}.")


def _beside(file: Path, path: str | None, number: int) -> Path:
    """Returns the file that stands for an image without bytes."""
    if not path:
        raise InputError(f"{file}, row {number}: the image has neither bytes nor a path.")
    return file.parent / path


def _of_parquet(file: Path, schema: Any) -> Labelled:
    """Returns the images of a Parquet file, as they lie in the copy, and their labels."""
    image, label = _columns(schema, file)
    kept, copy = read_kept(file), copy_path(file)
    if kept is None or not copy.is_file() or copy.stat().st_size != kept["bytes"]:
        kept = _copy(file, image, label, copy)
    names, labels = from_names(kept["names"]), from_names(kept["labels"])
    places = zip(kept["places"].tolist(), names, strict=True)
    return [file.parent / name if start < 0 else Packed(copy, start, size, name, file) for (start, size), name in places], list(labels)


def _copy(file: Path, image: str, label: str, copy: Path) -> dict[str, Array]:
    places: list[tuple[int, int]] = []
    names: list[str] = []
    labels: list[str | int] = []
    end = 0
    try:
        with replacing(copy) as out, _pyarrow(".parquet").ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=64, columns=[image, label]):
                contents, paths = _parts(batch.column(image), file)
                labels += _labels(batch.column(label), file)
                for content, path in zip(contents, paths, strict=True):
                    number, size = len(places), len(content.as_buffer()) if content.is_valid else 0
                    if not content.is_valid:
                        _beside(file, path, number)
                    places.append((end, size) if content.is_valid else (-1, 0))
                    names.append(f"row {number}" if content.is_valid else str(path))
                    if content.is_valid:
                        out.write(content.as_buffer())
                    end += size
    except _pyarrow().ArrowException as error:
        raise _damaged(file, error) from None
    except OSError as error:
        if error.errno is None:  # which pyarrow raises of what is compressed
            raise _damaged(file, error) from None
        raise InputError(
            f"The images of {file} can't be copied to {copy.parent} ({reason(error, 80)}): let CCT_HOME be a folder with room."
        ) from None
    if not places:
        raise InputError(f"{file} holds no row.")
    kept = {"places": np.array(places), "names": as_names(names), "labels": as_names(labels), "bytes": np.array(end)}
    keep(file, **kept)
    return kept


def _batches(file: Path) -> Iterator[tuple[Any, Any, int]]:
    """Yields schema and batches of an Arrow file, which lies in memory as on the disk from the address that comes with them."""
    try:
        with _pyarrow().memory_map(str(file)) as content:
            whole = content.read_buffer()
            with _pyarrow(".ipc").open_stream(whole) as stream:
                for batch in stream:
                    yield stream.schema, batch, whole.address
    except (OSError, _pyarrow().ArrowException) as error:
        raise _damaged(file, error) from None


def _places(column: Any, file: Path, base: int, count: int) -> list[Path | Packed]:
    """Returns where the images of a column lie in the file; ``count`` are known already, by which these are named."""
    contents, paths = _parts(column, file)
    _, ends, content = contents.buffers()
    wide = _pyarrow().types.is_large_binary(contents.type)
    offsets = np.frombuffer(ends, np.int64 if wide else np.int32)[contents.offset : contents.offset + len(contents) + 1].astype(np.int64)
    start = (content.address if content is not None else base) - base
    inside = 0 <= start <= file.stat().st_size
    if inside and len(contents) and (offsets[0] < 0 or (np.diff(offsets) < 0).any() or start + offsets[-1] > file.stat().st_size):
        raise _damaged(file, ValueError("images lie beyond its end"))
    if not inside:
        raise InputError(f"{file} is compressed, so that no image in it can be read alone: save it anew without compression.")
    there = contents.is_valid().to_pylist()
    numbers = enumerate(zip(offsets[:-1].tolist(), np.diff(offsets).tolist(), paths, there, strict=True), start=count)
    return [Packed(file, start + first, size, f"row {number}") if valid else _beside(file, path, number)
            for number, (first, size, path, valid) in numbers]  # fmt: skip
