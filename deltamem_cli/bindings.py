"""The native library as Python sees it: the `llama_cpp` binding of our build, and δ-mem's C interface through ctypes.

Knows nothing of engines. Importing it costs little; `native()` loads the library once per process.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from collections import deque
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from deltamem_cli import ending
from deltamem_cli.errors import DeltamemError
from deltamem_cli.paths import native_dir
from deltamem_cli.text import harmless, harmless_lines

API_VERSION = 3

GRANULARITIES = ("token", "message_mean", "sentence_mean")  # enum llama_deltamem_granularity
STATE_UPDATES = ("standard", "lambda_outside", "no_lambda")  # enum llama_deltamem_state_update
COMPUTE = ("auto", "fused", "ops", "graph")  # enum llama_deltamem_compute

_CPU = 0  # enum ggml_backend_dev_type
GPU_TYPES = (1, 2)  # with memory of its own, and in the processor
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR


class NativeError(DeltamemError):
    """A refusal of the native library, in its own words."""


class AdapterInfo(ctypes.Structure):
    """struct llama_deltamem_info"""

    _fields_ = (
        ("n_layers", ctypes.c_uint32),
        ("n_heads", ctypes.c_uint32),
        ("rank", ctypes.c_uint32),
        ("granularity", ctypes.c_uint32),
        ("compute", ctypes.c_uint32),
        ("n_bytes", ctypes.c_uint64),
    )


class ScanParams(ctypes.Structure):
    """struct llama_deltamem_scan_params"""

    _fields_ = (
        ("rank", ctypes.c_uint32),
        ("n_heads", ctypes.c_uint32),
        ("state_update", ctypes.c_uint32),
        ("rankwise_gates", ctypes.c_bool),
        ("couple_lambda", ctypes.c_bool),
        ("normalize_qk", ctypes.c_bool),
    )


_POINTER = ctypes.c_void_p
_FLOATS = ctypes.POINTER(ctypes.c_float)
_INT32S = ctypes.POINTER(ctypes.c_int32)
_BYTES = ctypes.POINTER(ctypes.c_uint8)

# name without prefix: (result, arguments), as in native/include/llama-deltamem.h
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "api_version": (ctypes.c_int32, []),
    "last_error": (ctypes.c_char_p, []),
    "adapter_init": (_POINTER, [_POINTER, ctypes.c_char_p, ctypes.c_int]),
    "adapter_free": (None, [_POINTER]),
    "adapter_info": (ctypes.c_int32, [_POINTER, ctypes.POINTER(AdapterInfo)]),
    "adapter_layers": (ctypes.c_int32, [_POINTER, _INT32S, ctypes.c_size_t]),
    "attach": (ctypes.c_int32, [_POINTER, _POINTER]),
    "detach": (ctypes.c_int32, [_POINTER]),
    "n_splits": (ctypes.c_int32, [_POINTER]),
    "state_n_floats": (ctypes.c_size_t, [_POINTER]),
    "state_n_bytes": (ctypes.c_size_t, [_POINTER]),
    "state_get": (ctypes.c_int32, [_POINTER, ctypes.c_int32, _FLOATS, ctypes.c_size_t]),
    "state_set": (ctypes.c_int32, [_POINTER, ctypes.c_int32, _FLOATS, ctypes.c_size_t]),
    "state_clear": (ctypes.c_int32, [_POINTER, ctypes.c_int32]),
    "state_copy": (ctypes.c_int32, [_POINTER, ctypes.c_int32, ctypes.c_int32]),
    "set_write": (ctypes.c_int32, [_POINTER, ctypes.c_bool]),
    "set_spans": (ctypes.c_int32, [_POINTER, _INT32S, ctypes.c_size_t]),
    "pass_begin": (ctypes.c_int32, [_POINTER, ctypes.c_int32]),
    "pass_drop": (ctypes.c_int32, [_POINTER, ctypes.c_int32]),
    "pass_end": (ctypes.c_int32, [_POINTER, ctypes.c_int32]),
    "abort_if_set": (ctypes.c_bool, [_POINTER]),
    "threadpool_init": (_POINTER, [ctypes.c_int32]),
    "threadpool_free": (None, [_POINTER]),
    "scan": (
        ctypes.c_int32,
        [ctypes.POINTER(ScanParams), _FLOATS, _FLOATS, _BYTES, ctypes.c_size_t, _FLOATS, _FLOATS],
    ),
}


class Native:
    """The loaded library. `llama`: the binding's functions (llama_cpp.llama_cpp); `call`: δ-mem's functions.

    Not thread-safe beyond what llama.cpp is: one thread per context at a time.
    """

    log_to_stderr = False  # all that llama.cpp tells

    def __init__(self, directory: Path, llama: Any) -> None:
        self.directory = directory
        self.llama = llama
        self.lib = llama._lib
        load = importlib.import_module("llama_cpp._ctypes_extensions").load_shared_library
        self.ggml, self.base = (load(name, directory / "lib") for name in ("ggml", "ggml-base"))
        for library, name, result, arguments in (
            (self.ggml, "ggml_backend_dev_get", _POINTER, [ctypes.c_size_t]),
            (self.ggml, "ggml_backend_dev_count", ctypes.c_size_t, []),
            (self.ggml, "ggml_backend_reg_by_name", _POINTER, [ctypes.c_char_p]),
            (self.base, "ggml_backend_dev_type", ctypes.c_int, [_POINTER]),
            (self.base, "ggml_backend_reg_dev_count", ctypes.c_size_t, [_POINTER]),
            (self.base, "ggml_backend_reg_dev_get", _POINTER, [_POINTER, ctypes.c_size_t]),
            (self.base, "ggml_backend_reg_get_proc_address", _POINTER, [_POINTER, ctypes.c_char_p]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._recent: deque[str] = deque(maxlen=20)
        for name, (result, arguments) in _FUNCTIONS.items():
            try:
                function = getattr(self.lib, f"llama_deltamem_{name}")
            except AttributeError:
                raise DeltamemError(
                    f"The library in {directory} lacks llama_deltamem_{name}, so it is plain llama.cpp or from "
                    "another version: reinstall deltamem-cli."
                ) from None
            function.restype, function.argtypes = result, arguments
        # the binding leaves this one out
        self.lib.llama_attach_threadpool.restype = None
        self.lib.llama_attach_threadpool.argtypes = [_POINTER, _POINTER, _POINTER]
        version = self.lib.llama_deltamem_api_version()
        if version != API_VERSION:
            raise DeltamemError(
                f"The library in {directory} has interface version {version}, this program needs {API_VERSION}: "
                "reinstall deltamem-cli."
            )
        self._log_callback = llama.llama_log_callback(self._on_log)  # kept: C holds no reference
        llama.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        self._load_backends()
        self._tell_the_end()
        llama.llama_backend_init()

    def _load_backends(self) -> None:
        """Loads the CPU library that suits this processor best, where a build has several (DELTAMEM_PORTABLE).

        ggml would search the folder of the Python program and the current one, which is anybody's.
        """
        lib = self.directory / "lib"
        ggml = self.ggml
        ggml.ggml_backend_dev_by_type.restype = _POINTER
        ggml.ggml_backend_load_all_from_path.restype = None
        ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        if not ggml.ggml_backend_dev_by_type(_CPU):
            ggml.ggml_backend_load_all_from_path(str(lib).encode())
        if not ggml.ggml_backend_dev_by_type(_CPU):
            raise DeltamemError(f"{lib} has no CPU library for this processor: reinstall deltamem-cli.")

    def _tell_the_end(self) -> None:
        """What llama.cpp ends the process for, and what C++ throws and nobody catches, is told in a sentence."""
        base = self.base
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(
            lambda message: ending.at_once(message.decode("utf-8", "replace"))
        )
        base.ggml_set_abort_callback.restype = ctypes.c_void_p
        base.ggml_set_abort_callback(self._on_abort)
        self._on_terminate = ctypes.CFUNCTYPE(None)(lambda: ending.at_once("an error that it does not handle"))
        with suppress(AttributeError):  # std::set_terminate, as all compilers but Microsoft's spell it
            base._ZSt13set_terminatePFvvE(self._on_terminate)

    def devices(self, *types: int) -> list[Any]:
        """This machine's devices of these types, of enum ggml_backend_dev_type."""
        found = [self.ggml.ggml_backend_dev_get(i) for i in range(self.ggml.ggml_backend_dev_count())]
        return [device for device in found if self.base.ggml_backend_dev_type(device) in types]

    @property
    def has_gpu(self) -> bool:
        """Whether this machine has one that this build can use. llama.cpp's own answer counts other machines too."""
        return bool(self.devices(*GPU_TYPES))

    def call(self, name: str, *args: Any) -> Any:
        """Calls llama_deltamem_<name>. Raises NativeError with its text when it reports a failure."""
        result = getattr(self.lib, f"llama_deltamem_{name}")(*args)
        restype = _FUNCTIONS[name][0]
        if (restype is ctypes.c_int32 and result < 0) or (restype is _POINTER and not result):
            raise NativeError(self.last_error() or "The native library failed.")
        return result

    def last_error(self) -> str:
        """What the calling thread's last call into δ-mem failed of, as a sentence; empty if δ-mem did not fail."""
        text = (self.lib.llama_deltamem_last_error() or b"").decode("utf-8", "replace")
        text = harmless(text, "?")
        if text.partition(" ")[0].isalpha():  # not a file's name
            text = text[:1].upper() + text[1:]
        return text + ("." if text and not text.endswith(".") else "")

    def recent_errors(self) -> str:
        """What llama.cpp last complained of, for a failure that it explains nowhere else; empties the list."""
        text = "; ".join(self._recent)
        self._recent.clear()
        return text

    def _on_log(self, level: int, text: bytes, _user_data: Any) -> None:
        line = text.decode("utf-8", "replace")
        if self.log_to_stderr:
            # names in it come from files, which must not write on the terminal what they like
            sys.stderr.write(harmless_lines(line, "?"))
        elif level == _LOG_ERROR and line.strip():
            # without the name of a function of C, and what files put into it
            self._recent.append(harmless(re.sub(r"^(\w+: )(error loading model: )?", "", line.strip()), "?"))


@cache
def native() -> Native:
    """Loads the library of this installation. Raises DeltamemError when it is missing or does not fit this program."""
    directory = native_dir()
    previous = os.environ.get("LLAMA_CPP_LIB_PATH")
    os.environ["LLAMA_CPP_LIB_PATH"] = str(directory / "lib")
    # Ours first: another installed llama_cpp belongs to another library.
    sys.path.insert(0, str(directory))
    try:
        llama = importlib.import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError, ImportError) as error:
        raise DeltamemError(
            f"The native library in {directory} can't be loaded ({error}): reinstall deltamem-cli."
        ) from error
    finally:
        sys.path.remove(str(directory))
        if previous is None:
            del os.environ["LLAMA_CPP_LIB_PATH"]
        else:
            os.environ["LLAMA_CPP_LIB_PATH"] = previous
    if Path(str(llama.__file__)).parent.parent != directory:
        raise DeltamemError(
            f"llama_cpp was already imported from {Path(str(llama.__file__)).parent}: start a process that imports deltamem_cli first."
        )
    return Native(directory, llama)
