#pragma once

// An adapter beside its model: whether they fit, how the corrections are computed and where their tensors lie, both of
// which follow from where the model's layers live.

#include "llama-deltamem-adapter.h"

#include <map>
#include <vector>

// width of the output that head `head` of layer `layer` corrects; 0 if the model has no such projection
int64_t llama_deltamem_width(const llama_model & model, int32_t il, llama_deltamem_head head);

// throws std::runtime_error with one sentence when the weights don't belong to the model
void llama_deltamem_check_model(const llama_deltamem_weights & weights, const llama_model & model);

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
