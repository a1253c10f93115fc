#pragma once

// The recurrence in ggml's own operators (GRAPH), for layers on any device:
//
//   p = W x ──► q, k, v, β [, λ]        rows now ──[get_rows]──► S ──► reads ──► y + D reads
//                                       rows next ◄──[set_rows]── S' (see llama-deltamem-rows.h)
//
// One token per sequence is plain products. More go through ggml_gated_delta_net, whose rule is, per head of size P,
//
//   S <- exp(g) S;  S <- S + β' (v' - S k) k^T;  out = S q / √P
//
// - keep S - erase (S k) k^T + write v k^T is that with g = log(keep), β' = erase/keep, v' = v keep write/erase;
// - it has one gate per head, and the rows of S are independent: with a gate per row, one row is a head of its own, its
//   value in lane 0; P >= rank is a size that the devices have a kernel for, the rest is zeros;
// - it reads after the write, δ-mem before: so a token is given the q of the next one, and the first read is a product;
// - a token that does not write has β = 0 and keep = 1, by a mask of -inf that is added before the sigmoid.

#include "llama-deltamem-memory.h"

struct llama_deltamem_inputs;
struct llama_ubatch;
struct llm_graph_context;

// How the tokens of a micro-batch lie: those of a sequence together, as many of each; or mixed, where every sequence
// gets room for all tokens. A graph that is used again has the same.
struct llama_deltamem_layout {
    explicit llama_deltamem_layout(const llama_ubatch & ubatch);

    bool operator==(const llama_deltamem_layout & o) const { return n_seqs == o.n_seqs && n_seq_tokens == o.n_seq_tokens && mixed == o.mixed; }

    int64_t n_seqs;
    int64_t n_seq_tokens;
    bool    mixed;
};

class llama_deltamem_recurrence {
public:
    llama_deltamem_recurrence(const llama_deltamem_weights & weights, llama_deltamem_memory & memory) : w(weights), memory(memory) {}

    // p [n_proj, n_tokens] of adapted layer `index` -> reads [n_read, n_tokens]; the writes become a part of the graph
    ggml_tensor * build(const llm_graph_context & graph, int index, ggml_tensor * p);

    // before a micro-batch is computed, when `memory` knows it; throws std::runtime_error with one sentence
    void begin(const llama_ubatch & ubatch);

    // after it has been: its projections go into the sums of its spans
    void keep_spans();

    // upper bound for the nodes that a layer takes, with its corrections
    static constexpr int N_NODES = 80;

private:
    friend struct llama_deltamem_inputs;

    const llama_deltamem_weights & w;
    llama_deltamem_memory & memory;

    const llama_deltamem_inputs * running = nullptr; // of the graph that was started last

    llama_deltamem_inputs & inputs_of(const llm_graph_context & graph) const;
};

// the smallest head size with room for `rank` that all devices have a kernel for; 0: none
int llama_deltamem_head_size(const llama_deltamem_rule & rule, const std::vector<ggml_backend_dev_t> & devices);
