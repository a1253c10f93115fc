#pragma once

// δ-mem weights: read from a GGUF file, validated, laid out for the kernels. Knows the model's shapes, not its graph.

#include "llama-deltamem.h"
#include "llama-deltamem-kernels.h"

#include "ggml-cpp.h"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct llama_model;
struct llama_layer;

// what is corrected, in the order of the file's D matrices
enum llama_deltamem_head { DELTAMEM_Q, DELTAMEM_K, DELTAMEM_V, DELTAMEM_O, DELTAMEM_N_HEADS };
inline constexpr const char * DELTAMEM_HEAD_NAMES[DELTAMEM_N_HEADS] = { "q", "k", "v", "o" };

// One matrix, for the fused kernels (transposed, in host memory) or as a ggml tensor beside the layer's own weights.
struct llama_deltamem_weight {
    llama_deltamem_matrix matrix;
    std::vector<float>    f32;
    std::vector<uint16_t> bf16;

    ggml_tensor * tensor = nullptr;

    size_t n_bytes() const { return f32.size()*sizeof(float) + bf16.size()*sizeof(uint16_t) + (tensor ? ggml_nbytes(tensor) : 0); }
};

struct llama_deltamem_layer {
    int32_t il = -1; // index in the model

    llama_deltamem_weight proj;       // hidden -> q | k | v | beta [| lambda]
    std::vector<float>    gate_bias;  // beta [| lambda]
    ggml_tensor *         gate_bias_tensor = nullptr;

    std::array<llama_deltamem_weight, DELTAMEM_N_HEADS> delta; // reads -> corrections; empty for heads that are not adapted
    std::vector<float>    o_norm;     // weight of the RMS norm of the o correction, or empty
    ggml_tensor *         o_norm_tensor = nullptr;
};

struct llama_deltamem_weights {
    std::string name; // file name without folder, for messages
    std::string arch;

    llama_deltamem_rule        rule;
    llama_deltamem_granularity granularity = LLAMA_DELTAMEM_TOKEN;
    llama_deltamem_compute     compute     = LLAMA_DELTAMEM_COMPUTE_FUSED;

    std::array<bool, DELTAMEM_N_HEADS> heads = {};

    int64_t head_size = 0; // of ggml's operator for the recurrence, with GRAPH; 0: some device has none

    float    o_norm_eps  = 0.0f; // > 0: the o correction is RMS-normed
    uint32_t n_embd      = 0;
    uint32_t n_layer     = 0;    // of the base model

    std::vector<llama_deltamem_layer> layers; // ascending by il

    std::vector<ggml_context_ptr>        ctxs; // of the ggml tensors, if any
    std::vector<ggml_backend_buffer_ptr> bufs;

    size_t n_bytes() const;
};

// the public handle
struct llama_deltamem_adapter {
    std::shared_ptr<const llama_deltamem_weights> weights;
};

// throws std::runtime_error with one sentence
std::shared_ptr<const llama_deltamem_weights> llama_deltamem_load(
        const llama_model & model, const char * path, llama_deltamem_compute compute);
