#pragma once

// δ-mem of one llama_context: what the patched call sites in llama.cpp talk to.
//
// CPU (FUSED), per adapted layer, in place on the outputs of llama.cpp's own products:
//
//   x ──[wq]── y ──[project, scan, +Δq]── …   one operator; for many tokens the projection is one of its own before it
//   x ──[wk]── y ──[+Δk]──  x ──[wv]── y ──[+Δv]──  …attention… ──[wo]── y ──[+Δo]── …
//
// elsewhere: p = W x and y + D reads where the layer lives, and reads = scan(p)
//   GRAPH: there too, in ggml's own operators (llama-deltamem-recurrence.h)
//   OPS:   on the CPU, where a device lacks an operator

#include "llama-deltamem-memory.h"
#include "llama-deltamem-recurrence.h"

#include "ggml-backend.h"

#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

struct llama_batch_ext;
struct llama_model;
struct llama_ubatch;
struct llm_graph_context;

struct llama_deltamem {
    // n_seqs: how many sequences the context can have
    llama_deltamem(std::shared_ptr<const llama_deltamem_weights> weights, const llama_model & model, int64_t n_seqs);

    llama_deltamem(const llama_deltamem &) = delete;
    llama_deltamem & operator=(const llama_deltamem &) = delete;

    // Call sites in llama_context::decode and process_ubatch. False: refused or failed, the cause is the last error.
    bool batch_begin(const llama_batch_ext & batch);
    bool ubatch_begin(const llama_ubatch & ubatch, int n_threads);
    ggml_status ubatch_end(ggml_status status, ggml_backend_sched_t sched); // of the computation; the micro-batch's
    bool batch_end();

    // Call site in llama_context::graph_max_nodes: upper bound for the nodes that the corrections take
    uint32_t n_nodes() const { return (uint32_t) weights->layers.size()*llama_deltamem_recurrence::N_NODES; }

    // Call site in llm_graph_context::build_lora_mm: y = w x, with the corrections that belong to w.
    ggml_tensor * build_mm(const llm_graph_context & graph, const ggml_tensor * w, ggml_tensor * x, ggml_tensor * y);

    const std::shared_ptr<const llama_deltamem_weights> weights;

    llama_deltamem_memory memory;

private:
    llama_deltamem_recurrence recurrence; // of GRAPH

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

    ggml_tensor * build_scan (const llm_graph_context & graph, const hook & h, ggml_tensor * x, ggml_tensor * y);
    ggml_tensor * build_delta(const llm_graph_context & graph, const hook & h, ggml_tensor * y);

    void correct(const hook & h, llama_deltamem_head head, const float * reads, ggml_tensor * y, int64_t col0, int ith, int nth);

    static void op_project  (ggml_tensor * dst, int ith, int nth, void * data);
    static void op_scan     (ggml_tensor * dst, int ith, int nth, void * data);
    static void op_delta    (ggml_tensor * dst, int ith, int nth, void * data);
    static void op_scan_only(ggml_tensor * dst, int ith, int nth, void * data);
};

// text for llama_deltamem_last_error()
void llama_deltamem_set_error(const char * text) noexcept;

// runs f; an exception becomes the last error and `failed`
template <typename T, typename F>
T llama_deltamem_guarded(T failed, F && f) noexcept {
    try {
        return f();
    } catch (const std::bad_alloc &) {
        llama_deltamem_set_error("out of memory: close other programs or use a smaller model");
    } catch (const std::exception & err) {
        llama_deltamem_set_error(err.what());
    } catch (...) {
        llama_deltamem_set_error("unknown failure in δ-mem");
    }
    return failed;
}
