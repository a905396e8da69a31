"""Ways to damage a file: its bytes, its lines, the values of a document, the fields of a protobuf message.

Each takes a `random.Random` and returns damaged content; the same generator state gives the same damage.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["mutate_arrays", "mutate_bytes", "mutate_document", "mutate_lines", "mutate_message"]

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    1 << 16,
    1 << 31,
    -(1 << 31),
    (1 << 31) - 1,
    1 << 40,
    (1 << 62) + 1,
)
LIMITS = ((1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-40, 1e20, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
WORDS = (
    "", " ", "x", "y", "ai.onnx", "com.microsoft", "qxc", "a\0b", "../escape", "/etc/passwd", "a/b", "\n", "é",
    "x" * 5000, "model.onnx", "Constant", "Identity", "MatMul", "Gather", "If", "Loop", "Conv", "Gemm", "Transpose",
    "%s{}[/red]",
)  # fmt: skip
TOKENS = (
    b"&a", b"*a", b"[", b"]", b"{", b"}", b": ", b"- ", b"!!python/name:os.system", b"null", b"true", b".nan", b"1e999",
    b"99999999999999999999", b"-1", b'"', b"'", b"\\", b"#", b"---\n", b"<<: *a", b"\t", b"\xff", b"\xef\xbb\xbf",
    b"\0", b"\"\\ud800\"", b"\xe2\x80\xa8", b"float", b"int4g16", b"int3g128/a8", b"lut3g128", b"[" * 3000, b"{" * 3000,
    b"9" * 5000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1 << 31, 1 << 63, 1 << 70, 0.5, 1e-40, 1e308, float("nan"), "", "x", "\ud800",
    "int8/a8", [], {}, [[]], [1, "a"], {"a": 1},
)  # fmt: skip


def mutate_bytes(data: bytes, draw: Random) -> bytes:
    """Bits turned; bytes set, cut out, doubled, put in; the end cut off."""
    damaged = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(damaged) + 1)
        length = min(draw.choice((1, 2, 4, 8, 64, 1024)), len(damaged) - place)
        how = draw.randrange(6)
        if how == 0 and place < len(damaged):
            damaged[place] ^= 1 << draw.randrange(8)
        elif how == 1 and place < len(damaged):
            damaged[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif how == 2:
            del damaged[place : place + length]
        elif how == 3:
            damaged[place:place] = damaged[place : place + length] * draw.choice((1, 1, 50))
        elif how == 4:
            damaged[place:place] = draw.randbytes(draw.choice((1, 4, 16)))
        else:
            del damaged[place:]
    return bytes(damaged)


def mutate_lines(data: bytes, draw: Random) -> bytes:
    """Lines doubled, dropped, exchanged; tokens that mean something to a parser put in."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        lines = data.splitlines(keepends=True) or [b"\n"]
        place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
        how = draw.randrange(6)
        if how == 0:
            lines.insert(other, lines[place])
        elif how == 1:
            del lines[place]
        elif how == 2:
            lines[place], lines[other] = lines[other], lines[place]
        elif how == 3:
            lines[place] = b"  " + lines[place]
        else:
            words = lines[place].split(b" ")
            words[draw.randrange(len(words))] = draw.choice(TOKENS)
            lines[place] = b" ".join(words)
        data = b"".join(lines)
    return data


def mutate_document(value: Any, draw: Random) -> Any:
    """One value of a document of mappings and lists replaced, dropped, or put under another key."""
    places = list(_places(value))
    if not places:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    how = draw.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[draw.choice(WORDS)] = holder.pop(key)
    elif how == 2:
        holder[key] = [holder[key]] * draw.choice((1, 2, 100))
    elif how == 3:
        other_holder, other_key = draw.choice(places)
        holder[key] = json.loads(json.dumps(other_holder.get(other_key) if isinstance(other_holder, dict) else None))
    else:
        holder[key] = draw.choice(VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def mutate_arrays(data: bytes, draw: Random) -> bytes:
    """An `.npz` with an array of another type, shape or name, with odd values, or with a header that lies."""
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    name = draw.choice(sorted(arrays))
    array = arrays[name]
    how = draw.randrange(9)
    if how == 0:
        types = ("f2", "f4", "f8", "c8", "i1", "u8", "?", "S3", "U3", "O", "M8[s]")
        array = array.astype(np.dtype(draw.choice(types)), casting="unsafe")
    elif how == 1:
        array = array.reshape(draw.choice(((-1,), (1, *array.shape), (*array.shape, 1), array.shape[::-1])))
    elif how == 2:
        array = array[: draw.choice((0, 1, 2))]
    elif how == 3:
        array = np.resize(
            array, (draw.choice((1, 3, 500)), *(draw.choice((size, 0, 1, 33)) for size in array.shape[1:]))
        )
    elif how == 4:
        array = array.copy()
        if array.size:
            odd = draw.choice((*INTEGERS, *LIMITS)) if array.dtype.kind in "iu" else draw.choice(FLOATS)
            with np.errstate(all="ignore"):
                array.flat[draw.randrange(array.size)] = np.array(odd).astype(array.dtype)
    elif how == 5:
        arrays[draw.choice(WORDS[:10])] = array
    elif how == 6:
        del arrays[name]
    if how != 6:
        arrays[name] = array
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, value in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, value, allow_pickle=True)
            content = entry.getvalue()
            if how == 7:  # a header that claims another shape
                content = content.replace(
                    b"'shape': (", b"'shape': (" + draw.choice((b"99999999999,", b"-1,", b"0,", b"7,")), 1
                )
            if how == 8:
                content = mutate_bytes(content, draw)
            archive.writestr(key.replace("\0", "").replace("/", "_") + ".npy", content)
    return buffer.getvalue()


def mutate_message(message: Message, draw: Random, donors: Sequence[Message] = ()) -> None:
    """One field anywhere in a protobuf message changed, in place: a number, a name, an edge, a shape, an attribute,
    an operator set, a body, a function, an entry of external data; an element dropped, doubled or moved; a part taken
    from another message of the same type.
    """
    holders = list(_messages(message))
    # as likely a node as a tensor, although there are more of the one
    kinds = sorted({type(holder).__name__ for holder in holders})
    kind = draw.choice(kinds)
    holder = draw.choice([holder for holder in holders if type(holder).__name__ == kind])
    fields = [field for field in holder.DESCRIPTOR.fields if not field.name.startswith("doc_string")]
    present = [field for field, _ in holder.ListFields()]
    field = draw.choice(present if present and draw.random() < 0.8 else fields)
    names = _names(message)
    if field.is_repeated:
        _mutate_repeated(getattr(holder, field.name), field, draw, names, donors)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if draw.random() < 0.4 or not (found := _of_type(donors, field.message_type.name)):
            holder.ClearField(field.name)
        else:
            getattr(holder, field.name).CopyFrom(draw.choice(found))
    elif draw.random() < 0.15:
        holder.ClearField(field.name)
    else:
        _set(holder, field, draw, names)


def _mutate_repeated(values: Any, field: FieldDescriptor, draw: Random, names: Sequence[str], donors: Any) -> None:
    place = draw.randrange(len(values)) if len(values) else None
    how = draw.randrange(5)
    message = field.type == FieldDescriptor.TYPE_MESSAGE
    if place is None or how == 0:  # something new
        if message:
            found = _of_type(donors, field.message_type.name)
            values.append(draw.choice(found)) if found else values.add()
        else:
            values.append(_scalar(field, draw, names))
    elif how == 1:
        del values[place]
    elif how == 2:
        values.append(values[place])
    elif how == 3:
        items = list(values)
        draw.shuffle(items)
        copies = [type(item).FromString(item.SerializeToString()) if message else item for item in items]
        del values[:]
        values.extend(copies)
    elif message:
        mutate_message(values[place], draw, donors)
    else:
        values[place] = _scalar(field, draw, names, values[place])


def _set(holder: Message, field: FieldDescriptor, draw: Random, names: Sequence[str]) -> None:
    setattr(holder, field.name, _scalar(field, draw, names, getattr(holder, field.name)))


def _scalar(field: FieldDescriptor, draw: Random, names: Sequence[str], old: Any = None) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw.choice(names) if names and draw.random() < 0.6 else draw.choice(WORDS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        if isinstance(old, str):
            old = old.encode()
        return mutate_bytes(old or b"abc", draw)
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return draw.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return draw.choice([value.number for value in field.enum_type.values])
    value = draw.choice((*INTEGERS, *LIMITS)) if draw.random() < 0.5 else (old or 0) + draw.choice((-8, -1, 1, 2, 8))
    if field.type == FieldDescriptor.TYPE_INT32:
        return max(-(1 << 31), min((1 << 31) - 1, value))
    if field.type == FieldDescriptor.TYPE_UINT64:
        return abs(value) % (1 << 64)
    return max(-(1 << 63), min((1 << 63) - 1, value))


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                yield from _messages(inner)


def _of_type(donors: Sequence[Message], name: str) -> list[Message]:
    return [inner for donor in donors for inner in _messages(donor) if inner.DESCRIPTOR.name == name]


def _names(message: Message) -> list[str]:
    found = set()
    for inner in _messages(message):
        if isinstance(inner, onnx.NodeProto):
            found |= {*inner.input, *inner.output, inner.op_type}
        elif isinstance(inner, (onnx.TensorProto, onnx.ValueInfoProto, onnx.AttributeProto)):
            found.add(inner.name)
    return sorted(found)
