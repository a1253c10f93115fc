#pragma once

// Where the layers of a model live, and what that makes of an adapter: how it is computed, and where its tensors lie.

#include "llama-deltamem-adapter.h"

#include <map>
#include <vector>

// How the corrections of `w`, whose settings are known, are computed on `model`: as asked, or the best way when that is
// AUTO. Sets w.compute and w.head_size; throws std::runtime_error with one sentence when the way can't be had.
void llama_deltamem_place(llama_deltamem_weights & w, const llama_model & model, llama_deltamem_compute asked);

// ggml tensors (for GRAPH and OPS), each beside the layer's own weights; filled once their buffers exist.
// F32 whatever the file holds: ggml's CPU products would round x to the type of a narrower weight.
class llama_deltamem_tensors {
public:
    explicit llama_deltamem_tensors(size_t n_max) : n_max(n_max) {}

    ggml_tensor * add(llama_deltamem_weights & w, const ggml_tensor * beside, int64_t ne0, int64_t ne1, std::vector<float> values);

    void fill(llama_deltamem_weights & w);

private:
    struct pending_tensor {
        ggml_tensor *      tensor;
        std::vector<float> values;
    };

    const size_t n_max;

    std::map<ggml_backend_buffer_type_t, ggml_context *> ctxs;
    std::vector<pending_tensor> pending;
};
