"""Files with one defect each: ours must refuse each by name, and so must the safetensors library where it checks.

What that library writes is the oracle for reading.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from llama3.checkpoint.safetensors_file import MAX_HEADER, open_safetensors
from llama3.errors import CheckpointError

BF16 = np.dtype(ml_dtypes.bfloat16)


class Lie(NamedTuple):
    name: str
    content: bytes
    says: str  # in our error message
    library_sees_it: bool = True  # whether the safetensors library refuses the file, too


def file(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: Any, end: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


A, B = entry(0, 8, [2]), entry(8, 16, [2])
GOOD = file({"a": A, "b": B})
TEXT_A = json.dumps(A).encode()

LIES = [
    Lie("empty file", b"", "has 0 bytes"),
    Lie("seven bytes", bytes(7), "has 7 bytes"),
    Lie("empty header", file(b""), "must begin with '{'"),
    Lie("header of 2^64 - 1 bytes", file({"a": A, "b": B}, length=2**64 - 1), "ends inside its header"),
    Lie("header longer than the file", file({"a": A, "b": B}, length=1000), "ends inside its header"),
    Lie("header not UTF-8", file(b'{"\xff": 1}'), "not valid JSON"),
    Lie("header not JSON", file(b"{'a': 1}"), "not valid JSON"),
    Lie("header is a list", file([A, B]), "must begin with '{'"),
    Lie("header with NaN", file(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}'), "shape is [nan]"),
    Lie("garbage after the header's object", file(json.dumps({"a": A, "b": B}).encode() + b"x"), "not valid JSON"),
    Lie("nested too deep", file(b'{"a":' * 200_000), "not valid JSON"),
    Lie("white space before the header", file(b"  " + json.dumps({"a": A, "b": B}).encode()), "must begin", False),
    Lie(
        "duplicate name, other offsets",
        file(b'{"a": %s, "a": %s}' % (TEXT_A, json.dumps(B).encode())),
        "'a' is in it twice",
    ),
    Lie(
        "duplicate name, all equal",
        file(b'{"a": %s, "a": %s}' % (TEXT_A, TEXT_A), bytes(8)),
        "'a' is in it twice",
        False,
    ),
    Lie("duplicate field", file(b'{"a": {"dtype": "F16", %s}' % TEXT_A[1:], bytes(8)), "'dtype' is in it twice"),
    Lie(
        "overlap",
        file({"a": A, "b": entry(4, 12, [2])}, bytes(12)),
        "'b': data_offsets begin at 4, expected 8: it",
    ),
    Lie("two on the same bytes", file({"a": A, "b": A}, bytes(8)), "'b': data_offsets begin at 0, expected 8"),
    Lie(
        "gap",
        file({"a": A, "b": entry(12, 20, [2])}, bytes(20)),
        "'b': data_offsets begin at 12, expected 8: there is a gap",
    ),
    Lie("gap at the start", file({"a": entry(4, 12, [2])}, bytes(12)), "'a': data_offsets begin at 4, expected 0"),
    Lie("bytes after the last tensor", file({"a": A}), "8 bytes follow the last tensor"),
    Lie("cut short", GOOD[:-1], "cut short"),
    Lie("offsets reversed", file({"a": entry(8, 0, [2])}, bytes(8)), "'a': data_offsets is [8, 0]"),
    Lie("offset negative", file({"a": entry(-8, 0, [2])}, bytes(8)), "'a': data_offsets is [-8, 0]"),
    Lie("offset a float", file({"a": entry(0, 8.0, [2])}, bytes(8)), "'a': data_offsets is [0, 8.0]"),
    Lie("offsets three", file({"a": A | {"data_offsets": [0, 8, 16]}}, bytes(8)), "'a': data_offsets is [0, 8, 16]"),
    Lie(
        "shape larger than its bytes",
        file({"a": entry(0, 8, [3])}, bytes(8)),
        "'a': data_offsets is [0, 8], but F",
    ),
    Lie(
        "shape smaller than its bytes",
        file({"a": entry(0, 8, [1])}, bytes(8)),
        "'a': data_offsets is [0, 8], but F",
    ),
    Lie("dimension negative", file({"a": entry(0, 8, [-2])}, bytes(8)), "'a': shape is [-2]"),
    Lie("dimension a truth value", file({"a": entry(0, 4, [True])}, bytes(4)), "'a': shape is [True]"),
    Lie("shape a number", file({"a": entry(0, 8, 2)}, bytes(8)), "'a': shape is 2"),
    Lie("size overflows 64 bits", file({"a": entry(0, 8, [2**63, 4])}, bytes(8)), "'a': data_offsets is [0, 8], but"),
    Lie("size wraps to 0", file({"a": entry(0, 0, [2**32, 2**32])}, b""), "'a': data_offsets is [0, 0], but"),
    Lie("zero-size with 2^63", file({"a": A, "b": entry(8, 8, [0, 2**63])}, bytes(8)), "'b': shape is [0, 922", False),
    Lie("unknown dtype", file({"a": entry(0, 8, [2], "Q7")}, bytes(8)), "'a': dtype is 'Q7'; expected BF16, F16, F32"),
    Lie("dtype a list", file({"a": entry(0, 8, [2], ["F32"])}, bytes(8)), "'a': dtype is ['F32']"),
    Lie("quantised", file({"a": entry(0, 8, [8], "F8_E4M3")}, bytes(8)), "'a': dtype is 'F8_E4M3'; expected", False),
    Lie("dtype of another width", file({"a": entry(0, 8, [2], "F16")}, bytes(8)), "'a': data_offsets is [0, 8], but F"),
    Lie("missing field", file({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "'a': expected the fields"),
    Lie("entry a number", file({"a": 1}, b""), "'a': expected the fields"),
    Lie("metadata not text", file({"__metadata__": {"x": 1}, "a": A}, bytes(8)), "__metadata__"),
    Lie("metadata a list", file({"__metadata__": ["x"], "a": A}, bytes(8)), "__metadata__"),
    Lie("no tensors", file({}, b""), "holds no tensors", False),
    Lie("no data", file({"a": entry(0, 0, [0])}, b""), "holds no tensors, or only empty ones", False),
]


@pytest.mark.parametrize("lie", LIES, ids=[lie.name for lie in LIES])
def test_a_header_that_lies_is_refused_with_the_file_and_the_field(tmp_path: Path, lie: Lie):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(lie.content)
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and lie.says in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("lie", LIES, ids=[lie.name for lie in LIES])
def test_the_safetensors_library_refuses_what_breaks_the_format(tmp_path: Path, lie: Lie):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(lie.content)
    assert accepted_by_the_library(path) != lie.library_sees_it


def accepted_by_the_library(path: Path) -> bool:
    try:
        with safe_open(path, "np"):
            return True
    except Exception:
        return False


@given(
    st.lists(st.tuples(st.sampled_from(["F32", "F16", "BF16"]), st.lists(st.integers(0, 3), max_size=3)), min_size=1),
    st.sampled_from([{}, {"__metadata__": None}, {"__metadata__": {}}, {"__metadata__": {"format": "pt"}}]),
    st.randoms(use_true_random=False),
)
def test_what_the_library_reads_is_read_too(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[str, list[int]]], metadata: dict, order: Any
) -> None:
    """Metadata of null, fields that are not known, tensors of size 0, and entries in any order."""
    entries, begin = [], 0
    for i, (dtype, shape) in enumerate(tensors):
        end = begin + int(np.prod(shape, dtype=int)) * (4 if dtype == "F32" else 2)
        entries.append((f"t{i}", entry(begin, end, shape, dtype) | ({"note": [i]} if i % 2 else {})))
        begin = end
    if begin == 0:
        return  # refused: "no data" above
    order.shuffle(entries)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(file(metadata | dict(entries), bytes(i % 251 for i in range(begin))))
    expected = safetensors.numpy.load_file(path)
    found = open_safetensors(path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].tobytes() == array.tobytes()


def test_a_header_over_the_formats_limit_is_not_read(tmp_path: Path):
    path = tmp_path / "long.safetensors"
    with path.open("wb") as long:
        long.write((MAX_HEADER + 1).to_bytes(8, "little"))
        long.truncate(MAX_HEADER + 100)  # sparse: no disk is used
    with pytest.raises(CheckpointError, match="ends inside its header"):
        open_safetensors(path)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, what: str):
    path = tmp_path / "model.safetensors"
    if what == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_safetensors(path)


ARRAYS = st.dictionaries(
    st.text(max_size=12).filter(lambda name: name != "__metadata__"),  # the only name that is not a tensor's
    st.tuples(
        st.sampled_from([np.dtype(np.float32), np.dtype(np.float16), BF16]),
        st.lists(st.integers(1, 5), max_size=3),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=6,
)


@given(ARRAYS)
def test_what_the_library_writes_is_read_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, specs: dict[str, Any]):
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    arrays = {}
    for name, (dtype, shape, seed) in specs.items():
        random = np.random.RandomState(seed)
        count = int(np.prod(shape, dtype=int)) * dtype.itemsize
        arrays[name] = np.frombuffer(random.bytes(count), dtype).reshape(shape)  # any bits: also NaN and infinity
    safetensors.numpy.save_file(arrays, path)
    read = open_safetensors(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()


@settings(max_examples=300)
@given(st.data())
def test_any_damaged_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Harmless means that the library accepts it as well, and that no tensor leaves its own bytes."""
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        tensors = open_safetensors(path)
    except CheckpointError:
        return
    assert accepted_by_the_library(path)
    assert sum(array.nbytes for array in tensors.values()) == 16


def test_tensors_are_read_only_views_of_the_file(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    safetensors.numpy.save_file({"a": np.arange(6, dtype=np.float32)}, path)
    a = open_safetensors(path)["a"]
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 1
    with path.open("r+b") as on_disk:  # a copy would not see this
        on_disk.seek(-4, 2)
        on_disk.write(np.float32(7).tobytes())
    assert a[5] == 7


def test_a_tensor_at_an_odd_offset_is_copied_to_an_even_one(tmp_path: Path):
    path = tmp_path / "odd.safetensors"
    values = np.arange(4, dtype=np.float32)
    path.write_bytes(file({"a": entry(0, 2, [1], "F16"), "b": entry(2, 18, [4])}, b"\0\0" + values.tobytes()))
    b = open_safetensors(path)["b"]
    assert b.flags.aligned and np.array_equal(b, values)
