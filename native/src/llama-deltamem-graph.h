#pragma once

// δ-mem of one llama_context: what the patched call sites in llama.cpp talk to.
//
// CPU (FUSED), per adapted layer, in place on the outputs of llama.cpp's own products:
//
//   x ──[wq]── y ──[project, scan, +Δq]── …   one operator; for many tokens the projection is one of its own before it
//   x ──[wk]── y ──[+Δk]──  x ──[wv]── y ──[+Δv]──  …attention… ──[wo]── y ──[+Δo]── …
//
// elsewhere (OPS): p = W x where the layer lives, reads = scan(p) on the CPU, y + D reads where the layer lives.

#include "llama-deltamem-memory.h"

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

struct llama_batch_ext;
struct llama_model;
struct llama_ubatch;

struct llama_deltamem {
    llama_deltamem(std::shared_ptr<const llama_deltamem_weights> weights, const llama_model & model);

    llama_deltamem(const llama_deltamem &) = delete;
    llama_deltamem & operator=(const llama_deltamem &) = delete;

    // Call sites in llama_context::decode and process_ubatch. False: refused or failed, the cause is the last error.
    bool batch_begin(const llama_batch_ext & batch);
    bool ubatch_begin(const llama_ubatch & ubatch, int n_threads);
    void ubatch_end(bool ok);
    void batch_end();

    // Call site in llm_graph_context::build_lora_mm: y = w x, with the corrections that belong to w.
    ggml_tensor * build_mm(ggml_context * ctx, const ggml_tensor * w, ggml_tensor * x, ggml_tensor * y);

    const std::shared_ptr<const llama_deltamem_weights> weights;

    llama_deltamem_memory memory;

private:
    // What an operator works on. Operators keep its address, so hooks never move.
    struct hook {
        llama_deltamem * self;
        const llama_deltamem_layer * layer;
        int index;                // of the adapted layer
        llama_deltamem_head head; // Q stands for the layer's input projection, fused or not
        bool fused_qkv;
        std::array<int64_t, 3> width; // of q, k, v in a fused output
    };

    std::vector<hook> hooks;
    std::unordered_map<const ggml_tensor *, const hook *> hook_of;

    // While a graph is built: what the later projections of a layer depend on. Null outside of a layer.
    std::vector<ggml_tensor *> scan_of;

    std::vector<uint8_t> reached; // per hook: some graph has it
    std::string          misfit;  // the first thing that does not fit, for the error message
    bool                 is_checked = false;

    ggml_tensor * build_scan (ggml_context * ctx, const hook & h, ggml_tensor * x, ggml_tensor * y);
    ggml_tensor * build_delta(ggml_context * ctx, const hook & h, ggml_tensor * y);

    void correct(const hook & h, llama_deltamem_head head, const float * reads, ggml_tensor * y, int64_t col0, int ith, int nth);

    static void op_project  (ggml_tensor * dst, int ith, int nth, void * data);
    static void op_scan     (ggml_tensor * dst, int ith, int nth, void * data);
    static void op_delta    (ggml_tensor * dst, int ith, int nth, void * data);
    static void op_scan_only(ggml_tensor * dst, int ith, int nth, void * data);
};

// text for llama_deltamem_last_error()
void llama_deltamem_set_error(const std::string & text);
