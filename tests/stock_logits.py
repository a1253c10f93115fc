"""python stock_logits.py BINDING_DIR LIB_DIR MODEL OUT.npy TOKENS…: logits of any build of llama.cpp, ours or not."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import numpy as np


def logits(llama: Any, model_path: str, tokens: list[int]) -> np.ndarray:
    """[tokens, n_vocab]: one half in a batch, the rest one by one, with the defaults of llama.cpp but one thread."""
    model = llama.llama_model_load_from_file(model_path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    context = llama.llama_init_from_model(model, params)
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    half, found = len(tokens) // 2, []
    for part in (tokens[:half], *([token] for token in tokens[half:])):
        numbers = (ctypes.c_int32 * len(part))(*part)  # the batch only points to them
        assert llama.llama_decode(context, llama.llama_batch_get_one(numbers, len(part))) == 0
        found.append(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (n_vocab,)).copy())
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.array(found)


if __name__ == "__main__":
    binding, library, model, out, *tokens = sys.argv[1:]
    os.environ["LLAMA_CPP_LIB_PATH"] = library
    sys.path.insert(0, binding)
    import llama_cpp.llama_cpp as llama

    assert not hasattr(llama._lib, "llama_deltamem_api_version"), f"{library} is not an unpatched build"
    np.save(out, logits(llama, model, [int(token) for token in tokens]))
