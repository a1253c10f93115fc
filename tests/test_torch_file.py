"""torch.save files are read exactly, and nothing but tensors is accepted from them."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from published_files import (
    GOLDEN,
    archive,
    call,
    mapping,
    named,
    sequence,
    storage,
    tensor,
    text,
    torch_bytes,
    whole,
    whole_pickle,
)

from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.torch_file import read_torch_file
from deltamem_cli.formats.weight import Weight

NUMBERS = np.arange(24, dtype=np.float32)


def read(tmp_path: Path, raw: bytes) -> dict[str, Weight]:
    path = tmp_path / "delta_mem_adapter.pt"
    path.write_bytes(raw)
    return read_torch_file(path)


def one(described: bytes, raw: bytes = NUMBERS.tobytes(), **options) -> bytes:
    return archive(whole_pickle(mapping({"a": described})), {"0": raw}, **options)


def refusal(tmp_path: Path, raw: bytes) -> str:
    with pytest.raises(AdapterError) as caught:
        read(tmp_path, raw)
    message = str(caught.value)
    assert "delta_mem_adapter.pt" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDEN.iterdir()))
def test_a_file_that_pytorch_wrote_is_read_number_by_number(case: str) -> None:
    path = GOLDEN / case / "adapter" / "delta_mem_adapter.pt"
    tensors = read_torch_file(path)
    assert len(tensors) == 36
    with zipfile.ZipFile(path) as zip_file:
        for key, (name, weight) in enumerate(tensors.items()):
            assert name.startswith(f"model.layers.{key // 9}.self_attn.")
            assert weight.type == "F32"
            assert weight.data.tobytes() == zip_file.read(f"delta_mem_adapter/data/{key}")


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_each_type_is_read_bit_by_bit(tmp_path: Path, type: str) -> None:
    weight = Weight.from_float32(np.random.default_rng(0).normal(size=(5, 3)), type)
    found = read(tmp_path, torch_bytes({"a": weight}))["a"]
    assert found.type == type
    np.testing.assert_array_equal(found.data, weight.data)


def test_offset_and_stride_are_respected(tmp_path: Path) -> None:
    square = NUMBERS.reshape(4, 6)
    found = read(tmp_path, one(tensor(storage("0", 24), 8, (2, 3), (6, 1))))["a"]
    np.testing.assert_array_equal(found.data, square[1:3, 2:5])
    found = read(tmp_path, one(tensor(storage("0", 24), 0, (6, 4), (1, 6))))["a"]
    np.testing.assert_array_equal(found.data, square.T)
    assert found.data.flags.c_contiguous


def test_the_byte_order_record_is_respected(tmp_path: Path) -> None:
    described = tensor(storage("0", 24), 0, (24,), (1,))
    big = read(tmp_path, one(described, NUMBERS.astype(">f4").tobytes(), order=b"big"))["a"]
    np.testing.assert_array_equal(big.data, NUMBERS)
    without = read(tmp_path, one(described, order=None))["a"]
    np.testing.assert_array_equal(without.data, NUMBERS)
    assert "byte order" in refusal(tmp_path, one(described, order=b"middle"))


def test_scalars_empty_tensors_parameters_and_ordered_dicts_are_read(tmp_path: Path) -> None:
    scalar = tensor(storage("0", 24), 5, (), ())
    empty = tensor(storage("0", 24), 24, (0, 4), (4, 1))
    parameter = call(
        named("torch._utils", "_rebuild_parameter"), scalar, b"\x88", call(named("collections", "OrderedDict"))
    )
    ordered = call(named("collections", "OrderedDict")) + mapping(
        {"scalar": scalar, "empty": empty, "parameter": parameter}
    ).removeprefix(b"}")
    found = read(tmp_path, archive(whole_pickle(ordered), {"0": NUMBERS.tobytes()}))
    assert found["scalar"].data == found["parameter"].data == 5
    assert found["empty"].shape == (0, 4)


class Malicious:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("attack", "culprit"),
    [
        (lambda mark: Malicious(os.system, f"touch {mark}"), f"{os.name}.system"),
        (lambda mark: Malicious(eval, f"open({str(mark)!r}, 'w')"), "builtins.eval"),
        (lambda mark: {"w": Malicious(os.system, f"touch {mark}")}, f"{os.name}.system"),
        (lambda mark: OrderedDict(w=(Malicious(exec, "import os"), 1)), "builtins.exec"),
        (lambda mark: Malicious(getattr, Malicious(__import__, "os"), "system"), "builtins.getattr"),
        (lambda mark: Malicious(os.spawnl, os.P_WAIT, "/bin/touch", ["touch", str(mark)]), "os.spawnl"),
        (lambda mark: {"w": slice(1)}, "builtins.slice"),
    ],
    ids=[
        "os.system",
        "eval",
        "inside a dict",
        "inside a tuple",
        "nested calls",
        "with a list",
        "harmless but no tensor",
    ],
)
def test_a_malicious_pickle_is_refused_by_name_and_runs_nothing(tmp_path: Path, attack, culprit, protocol) -> None:
    mark = tmp_path / "it-ran"
    pickled = pickle.dumps(attack(mark), protocol=protocol)
    message = refusal(tmp_path, archive(pickled, {}))
    assert f"names {culprit}," in message.replace("__builtin__", "builtins")
    assert not mark.exists()


def test_the_attack_of_these_tests_works_on_a_plain_unpickler(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Malicious(os.system, f"touch {mark}"), protocol=2))
    assert mark.exists()


def test_a_call_hidden_among_the_arguments_of_a_real_tensor_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    hook = call(named("posix", "system"), text(f"touch {mark}"))
    described = tensor(storage("0", 24), 0, (24,), (1,))
    poisoned = described.replace(call(named("collections", "OrderedDict")), hook)
    assert poisoned != described
    assert "posix.system" in refusal(tmp_path, one(poisoned))
    assert not mark.exists()


def test_a_name_put_together_at_run_time_is_refused(tmp_path: Path) -> None:
    # STACK_GLOBAL takes its name from the stack, so only the unpickler itself can see it.
    hidden = b"\x80\x04" + text("posix") + b"\x94" + text("system") + b"\x93" + sequence(text("true")) + b"R."
    assert "posix.system" in refusal(tmp_path, archive(hidden, {}))


@pytest.mark.parametrize(
    ("body", "opcode"),
    [
        (b"(S'true'\niposix\nsystem\n", "posix.system"),
        (named("collections", "OrderedDict") + b")\x81", "NEWOBJ"),
        (call(named("collections", "OrderedDict")) + mapping({}) + b"b", "BUILD"),
        (b"\x82\x01", "EXT1"),
        (b"(" + named("collections", "OrderedDict") + b"o", "OBJ"),
    ],
)
def test_other_ways_to_make_objects_are_refused(tmp_path: Path, body: bytes, opcode: str) -> None:
    assert opcode in refusal(tmp_path, archive(whole_pickle(body), {})).replace("STRING", "posix.system")


def test_formats_of_old_pytorch_are_refused_with_what_to_do(tmp_path: Path) -> None:
    plain = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    for raw in (plain, buffer.getvalue()):
        message = refusal(tmp_path, raw)
        assert "before 1.6" in message
        assert "save it again" in message


def test_files_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    for raw in (b"", b"PK", b"GGUF" + b"\0" * 600, b"\xff" * 1000):
        assert "damaged" in refusal(tmp_path, raw)
    with pytest.raises(AdapterError, match="no such file"):
        read_torch_file(tmp_path / "missing.pt")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    raw = torch_bytes({"a": Weight(NUMBERS), "b": Weight(NUMBERS.reshape(4, 6))})
    for length in range(0, len(raw), 7):
        refusal(tmp_path, raw[:length])


def test_random_damage_is_refused_or_harmless_and_never_a_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = np.frombuffer(torch_bytes({"a": Weight(NUMBERS), "b": Weight(NUMBERS.reshape(4, 6))}), np.uint8)
    for _ in range(500):
        damaged = raw.copy()
        damaged[rng.integers(len(raw), size=rng.integers(1, 4))] = rng.integers(256)
        try:
            assert all(isinstance(weight, Weight) for weight in read(tmp_path, damaged.tobytes()).values())
        except AdapterError as error:
            assert "\n" not in str(error)


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    described = tensor(storage("0", 1 << 24), 0, (1 << 24,), (1,))
    packed = one(described, bytes(1 << 26), compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 1 << 20
    assert "compressed" in refusal(tmp_path, packed)


def test_entries_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    raw = one(tensor(storage("0", 24), 0, (24,), (1,)))
    # the directory entry of data/0: its two sizes stand 24 and 20 bytes before its name
    at = raw.rindex(b"adapter/data/0")
    forged = raw[: at - 26] + struct.pack("<II", 1 << 31, 1 << 31) + raw[at - 18 :]
    assert "claim more bytes" in refusal(tmp_path, forged)


def test_a_pickle_that_asks_for_a_giant_memo_is_refused(tmp_path: Path) -> None:
    bomb = b"}r" + struct.pack("<I", 0xFFFFFFF0)
    assert "memory" in refusal(tmp_path, archive(whole_pickle(bomb), {}))


@pytest.mark.parametrize("step", [b"\x85", b"\x94\x85", b"q\x01h\x01\x86", b"K\x02\x86"])
def test_a_pickle_that_nests_as_deep_as_would_end_python_is_refused(tmp_path: Path, step: bytes) -> None:
    for n in (200, 2_000_000 // len(step)):
        raw = archive(whole_pickle(b"})" + step * n + b"K\x01s"), {})
        assert "nests" in refusal(tmp_path, raw)


def test_a_giant_pickle_is_refused(tmp_path: Path) -> None:
    assert "larger than" in refusal(tmp_path, archive(whole_pickle(b"}" * (3 << 20)), {}))


def test_tensors_that_multiply_their_storage_are_refused(tmp_path: Path) -> None:
    repeated = tensor(storage("0", 24), 0, (1 << 20, 1 << 20), (0, 0))
    assert "outside its storage" in refusal(tmp_path, one(repeated))
    shared = {f"t{i}": tensor(storage("0", 4096), 0, (4096,), (1,)) for i in range(200)}
    raw = archive(whole_pickle(mapping(shared)), {"0": bytes(4 * 4096)})
    assert "more numbers than the file" in refusal(tmp_path, raw)


@pytest.mark.parametrize(
    "described",
    [
        tensor(storage("0", 24), 0, (25,), (1,)),
        tensor(storage("0", 24), 1, (24,), (1,)),
        tensor(storage("0", 24), 0, (2, 12), (13, 1)),
        tensor(storage("0", 24), 23, (2,), (1,)),
        tensor(storage("0", 24), 1 << 70, (2,), (1,)),
        tensor(storage("0", 24), 0, (1 << 70,), (1,)),
        tensor(storage("0", 24), -1, (2,), (1,)),
        tensor(storage("0", 24), 0, (-2,), (1,)),
        tensor(storage("0", 24), 5, (2,), (-1,)),
        tensor(storage("0", 24), 0, (2, 2), (1,)),
        tensor(storage("0", 23), 0, (2,), (1,)),
        tensor(storage("0", 25), 0, (2,), (1,)),
        tensor(storage("0", -24), 0, (2,), (1,)),
        tensor(storage("1", 24), 0, (2,), (1,)),
        tensor(storage("../0", 24), 0, (2,), (1,)),
        tensor(storage("0", 24, "LongStorage"), 0, (2,), (1,)),
        tensor(storage("0", 24, "DoubleStorage"), 0, (2,), (1,)),
        tensor(text("no storage"), 0, (2,), (1,)),
        tensor(text("x") + b"Q", 0, (2,), (1,)),
        call(named("torch._utils", "_rebuild_tensor_v2")),
        call(named("torch", "FloatStorage"), whole(3)),
        whole(1),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(tmp_path: Path, described: bytes) -> None:
    refusal(tmp_path, one(described))


def test_the_kind_of_unusable_numbers_is_named(tmp_path: Path) -> None:
    for kind in ("DoubleStorage", "LongStorage"):
        assert kind in refusal(tmp_path, one(tensor(storage("0", 12, kind), 0, (2,), (1,))))


def test_anything_but_a_dict_of_named_tensors_is_refused(tmp_path: Path) -> None:
    described = tensor(storage("0", 24), 0, (24,), (1,))
    for body in (described, sequence(described), b"}(" + whole(1) + described + b"u"):
        refusal(tmp_path, archive(whole_pickle(body), {"0": NUMBERS.tobytes()}))
    assert "data.pkl" in refusal(tmp_path, _zip({"other": b""}))
    assert "data.pkl" in refusal(tmp_path, _zip({"a/data.pkl": b"", "b/data.pkl": b""}))


def _zip(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zip_file:
        for name, raw in entries.items():
            zip_file.writestr(name, raw)
    return buffer.getvalue()


def test_what_is_wrong_with_a_description_is_said(tmp_path: Path) -> None:
    good = tensor(storage("0", 24), 0, (2,), (1,))
    assert "without numbers" in refusal(tmp_path, one(good.replace(storage("0", 24), text("no storage"))))
    assert "size is not" in refusal(tmp_path, one(good.replace(sequence(whole(2)), sequence(text("two")))))
    assert "offset is not" in refusal(tmp_path, one(good.replace(whole(0) + b"(", b"\x89(")))
