"""Too little memory in the middle of a decode fails it with a sentence; the state stays, and the next decode works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeAdapter, MakeModel

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not COMPILER, reason="needs LD_PRELOAD and a compiler to replace operator new"
)

# Refuses what is exactly as large as it was told: what else is as large is unlikely.
OPERATOR_NEW = """
#include <cstdlib>
#include <new>
static size_t refused = 0;
extern "C" void refuse(size_t size) { refused = size; }
void * operator new(size_t size) {
    if (refused && size == refused) throw std::bad_alloc();
    if (void * p = std::malloc(size ? size : 1)) return p;
    throw std::bad_alloc();
}
void operator delete(void * p) noexcept { std::free(p); }
void operator delete(void * p, size_t) noexcept { std::free(p); }
"""

SCRIPT = """
import ctypes, sys
from pathlib import Path
from deltamem_cli.engine import Model
from raw_context import RawContext, rows

path, adapter, compute, size = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
refuse = ctypes.CDLL(None).refuse
refuse.argtypes = [ctypes.c_size_t]
tokens = [i * 7919 % 288 for i in range(41)]
spans = [min(i, 36) for i in range(41)]
with Model(path) as model, RawContext(model, adapter, compute=compute) as context:
    context.decode(rows(tokens), spans)  # what is allocated once has its place now
    context.llama.llama_memory_clear(context.memory, True)
    before = context.state()
    refuse(size)
    assert context.try_decode(rows(tokens), spans) != 0
    assert context.native.last_error().startswith("Out of memory"), context.native.last_error()
    refuse(0)
    assert context.state().tobytes() == before.tobytes()
    context.llama.llama_memory_clear(context.memory, True)
    context.decode(rows(tokens), spans)
    assert context.state().tobytes() != before.tobytes()
"""


@pytest.fixture(scope="module")
def operator_new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("operator_new")
    (folder / "new.cpp").write_text(OPERATOR_NEW)
    library = folder / "libnew.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", library, folder / "new.cpp"], check=True)
    return library


PROJECTION = 32 * 4  # bytes of a token's or a span's q, k, v and gates


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer has an operator new of its own"
)
@pytest.mark.parametrize(
    ("compute", "size"),
    [
        ("fused", 37 * PROJECTION),  # after the batch: the means of 37 spans
        ("graph", 37 * PROJECTION),
        ("graph", 41 * PROJECTION),  # after a micro-batch: the projections of 41 tokens
    ],
)
def test_no_memory_for_span_writes_fails_the_decode_and_leaves_the_state(
    compute: str, size: int, operator_new: Path, tiny_model: MakeModel, tiny_adapter: MakeAdapter
) -> None:
    model = tiny_model("qwen3")
    adapter = tiny_adapter(model, write_granularity="message_mean")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "LD_PRELOAD": str(operator_new),
    }
    command = [sys.executable, "-c", SCRIPT, model, adapter, compute, str(size)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
