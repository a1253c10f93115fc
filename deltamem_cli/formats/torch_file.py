"""Reads the tensors of a torch.save file without PyTorch; runs nothing that the file names.

A torch.save file is a zip of one pickle, which describes tensors, and one raw file per storage. A pickle can name
any function of any module and have it called, so this one may name only what tensors are made of (_GLOBALS), may
use only the opcodes that torch.save writes for a dict of tensors (_OPCODES), and the names resolve to stand-ins.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltamem_cli import reading
from deltamem_cli.formats.errors import AdapterError, shown
from deltamem_cli.formats.weight import STORAGE, Weight

# A description of one tensor takes about 100 bytes; 2 MiB describe more tensors than any adapter has.
_MAX_PICKLE = 2 << 20
_MAX_MEMO = 1 << 20
_MAX_DEPTH = 100  # a dict of tensors has six; hashing and freeing what is nested goes as deep in C, without a limit

_OPCODES = frozenset(
    {
        "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
        "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM",
        "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET",
        "LONG_BINGET",
    }
)  # fmt: skip


class _Refused(Exception):
    """Why the file is not accepted, as a clause without its name, and what to do."""

    def __init__(self, clause: str, step: str = "use the file as it was published") -> None:
        super().__init__(clause)
        self.step = step


@dataclass(frozen=True)
class _StorageType:
    """Stands in for torch.FloatStorage and its like; type is None where an adapter cannot use the numbers."""

    name: str
    type: str | None


@dataclass(frozen=True)
class _Storage:
    """The flat numbers of one storage, in the machine's byte order."""

    data: NDArray[Any]
    type: str


def _storage_types() -> dict[tuple[str, str], _StorageType]:
    usable = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
    # Named so that the refusal can say which numbers they are. float64 is among them on purpose: the published code
    # saves in the model's type, so a float64 adapter was made by something else, and rounding it would be a guess.
    others = ("Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat", "ComplexDouble")
    names = {name: _StorageType(name, type) for name, type in usable.items()}
    names |= {f"{name}Storage": _StorageType(f"{name}Storage", None) for name in others}
    return {("torch", name): stand_in for name, stand_in in names.items()}


def _integers(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise _Refused(f"it describes a tensor whose {what} is not a list of whole numbers")
    return values


class _Tensors:
    """Builds weights from storages, and never more numbers than the file has bytes for."""

    def __init__(self, byte_budget: int) -> None:
        self.byte_budget = byte_budget

    def rebuild_tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Weight:
        if not isinstance(storage, _Storage):
            raise _Refused("it describes a tensor without numbers")
        (offset,) = _integers((offset,), "offset")
        size, stride = _integers(size, "size"), _integers(stride, "stride")
        if len(size) != len(stride) or len(size) > 4:
            raise _Refused("it describes a tensor whose size and stride do not match")
        count = math.prod(size)
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
        # count is tested as well because a stride of 0 repeats numbers without ever leaving the storage.
        if count and (last >= storage.data.size or count > storage.data.size):
            raise _Refused("it describes a tensor that reaches outside its storage")
        self.byte_budget -= count * storage.data.itemsize
        if self.byte_budget < 0:
            raise _Refused("its tensors have more numbers than the file holds")
        steps = tuple(step * storage.data.itemsize for step in stride)
        view = np.lib.stride_tricks.as_strided(storage.data[offset:] if count else storage.data, size, steps)
        return Weight(np.array(view, order="C", copy=True), storage.type)

    @staticmethod
    def rebuild_parameter(data: Any, *_: Any) -> Any:
        return data


class _Unpickler(pickle.Unpickler):
    """Resolves the names of _GLOBALS to stand-ins and refuses every other name."""

    def __init__(self, pickled: bytes, archive: _Archive) -> None:
        super().__init__(io.BytesIO(pickled))
        self.archive = archive
        tensors = _Tensors(archive.size)
        self.stand_ins: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): tensors.rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): tensors.rebuild_parameter,
            ("collections", "OrderedDict"): OrderedDict,
            **_storage_types(),
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.stand_ins:
            raise _Refused(_forbidden(f"{module} {name}"))
        return self.stand_ins[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise _Refused("it refers to something that is not a storage")
        _, kind, key, _, count = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise _Refused("it refers to a storage of an unknown kind")
        if kind.type is None:
            raise _Refused(f"it holds {kind.name} numbers, and adapters are made of float32, float16 or bfloat16")
        (count,) = _integers((count,), "size")
        return self.archive.storage(key, kind.type, count)


_GLOBALS = frozenset(
    {
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "collections OrderedDict",
        *(f"{module} {name}" for module, name in _storage_types()),
    }
)


def _forbidden(name: str) -> str:
    return f"its pickle names {shown(name.replace(' ', '.'))}, which a dict of tensors does not need and which might run a program"


class _Archive:
    """The zip of a torch.save file, bounded by the bytes that are really there."""

    def __init__(self, zip_file: zipfile.ZipFile, size: int) -> None:
        self.zip_file = zip_file
        self.size = size
        self.storages: dict[tuple[str, str], _Storage] = {}
        entries = zip_file.infolist()
        # torch.save stores without compression. Insisting on that, and on entries that add up to no more than the
        # file, is what bounds a zip bomb, also one whose entries overlap.
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise _Refused("its entries are compressed or encrypted, which torch.save never does")
        if sum(entry.file_size for entry in entries) > size:
            raise _Refused("its entries claim more bytes than the file has")
        pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise _Refused("it is a zip file without the one data.pkl that torch.save writes")
        self.folder = pickles[0].removesuffix("data.pkl")
        self.names = {entry.filename: entry for entry in entries}
        order = self.read("byteorder") if f"{self.folder}byteorder" in self.names else b"little"
        if order not in (b"little", b"big"):
            raise _Refused("its byte order is neither little nor big")
        self.swap = order == b"big"

    def read(self, name: str, limit: int | None = None) -> bytes:
        entry = self.names.get(self.folder + name)
        if entry is None:
            raise _Refused(f"its entry {shown(name)} is missing")
        if limit is not None and entry.file_size > limit:
            raise _Refused(f"its entry {shown(name)} is larger than {limit} bytes")
        return self.zip_file.read(entry)

    def storage(self, key: str, type: str, count: int) -> _Storage:
        if (key, type) not in self.storages:
            raw = self.read(f"data/{key}")
            dtype = STORAGE[type]
            if len(raw) != count * dtype.itemsize:
                raise _Refused(f"its storage {shown(key)} has {len(raw)} bytes for {count} {type} numbers")
            data = np.frombuffer(raw, dtype=dtype)
            self.storages[key, type] = _Storage(data.byteswap() if self.swap else data, type)
        return self.storages[key, type]


class _Depths:
    """How deep what the unpickler will have on its stack and in its memo is nested, or less deep than said."""

    def __init__(self) -> None:
        self.stack: list[int | None] = []  # None is a mark
        self.memo: dict[int, int | None] = {}

    def take(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        if opcode.name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif opcode.name == "MARK":
            self.stack.append(None)
        else:
            depth = 1 + max(self._taken(opcode), default=-1)
            if depth > _MAX_DEPTH:
                raise _Refused("its pickle nests things deeper than a dict of tensors does")
            self.stack += [depth] * len(opcode.stack_after)

    def _taken(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        taken = []
        before = list(opcode.stack_before)
        if pickletools.markobject in before:
            while (depth := self.stack.pop()) is not None:
                taken.append(depth)
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            taken.append(self.stack.pop() or 0)
        return taken


def _check_opcodes(pickled: bytes) -> None:
    """Refuses, before anything is loaded, whatever torch.save does not write for a dict of tensors."""
    depths = _Depths()
    strings: list[str] = []
    culprit: str | None = None
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            if argument not in _GLOBALS:
                raise _Refused(_forbidden(str(argument)))
        elif isinstance(argument, str):
            strings.append(argument)
        # The unpickler makes room for every memo number up to the largest one named.
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_MEMO:
            raise _Refused("its pickle asks for too much memory")
        if opcode.name == "STACK_GLOBAL" and " ".join(strings[-2:]) not in _GLOBALS:
            # A guess, as names may come from the memo too; find_class decides, but here it makes the better message.
            culprit = culprit or _forbidden(" ".join(strings[-2:]))
        if opcode.name not in _OPCODES:
            raise _Refused(culprit or f"its pickle uses {opcode.name}, which a dict of tensors does not need")
        depths.take(opcode, argument)


def read_torch_file(path: Path) -> dict[str, Weight]:
    """Reads a torch.save dict of float32, float16 or bfloat16 tensors.

    Raises AdapterError when the file is anything else, is damaged, or names anything but tensors.
    """
    try:
        reading.check_regular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            _refuse_legacy(file.read(512))
            with zipfile.ZipFile(file) as zip_file:
                archive = _Archive(zip_file, size)
                pickled = archive.read("data.pkl", limit=_MAX_PICKLE)
                _check_opcodes(pickled)
                return _dict_of_tensors(_Unpickler(pickled, archive).load())
    except _Refused as refusal:
        raise AdapterError(f"{path} was refused: {refusal}; {refusal.step}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AdapterError(f"{path} cannot be read ({reason}); check the path and its permissions") from None
    except _DAMAGE as error:
        raise AdapterError(
            f"{path} is damaged or not complete ({shown(error) or type(error).__name__}); download it again"
        ) from None


# What zipfile, pickletools and pickle raise on bytes that make no sense.
_DAMAGE = (
    zipfile.BadZipFile, pickle.UnpicklingError, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError,
    TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip


def _refuse_legacy(start: bytes) -> None:
    if start[257:262] == b"ustar" or start[:1] == b"\x80":
        raise _Refused(
            "it has the format of PyTorch before 1.6, which only PyTorch itself can read",
            "save it again with torch.save of a newer PyTorch",
        )


def _dict_of_tensors(loaded: Any) -> dict[str, Weight]:
    if not isinstance(loaded, dict):
        raise _Refused("it does not hold a dict of tensors")
    for name, weight in loaded.items():
        if not isinstance(name, str) or not isinstance(weight, Weight):
            raise _Refused(f"its entry {shown(name)} is not a named tensor")
    return dict(loaded)
