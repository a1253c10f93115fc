#pragma once

// The arithmetic of δ-mem on plain arrays; knows nothing of models, graphs or sequences.
// llama-deltamem-kernels.cpp is compiled once per instruction set, each time under its own name.

#include <cstddef>
#include <cstdint>

struct llama_deltamem_matrix; // below

struct llama_deltamem_rule {
    int  rank           = 0;
    int  n_heads        = 0;
    int  state_update   = 0;     // enum llama_deltamem_state_update
    bool rankwise_gates = true;
    bool couple_lambda  = true;
    bool normalize_qk   = true;

    int n_read()  const { return n_heads*rank; }
    int n_gate()  const { return rankwise_gates ? n_read() : n_heads; }
    // no_lambda keeps everything, so it has no lambda even when it is not coupled
    bool has_lambda() const { return !couple_lambda && state_update != 2; }
    int n_gates() const { return has_lambda() ? 2*n_gate() : n_gate(); }
    int n_proj()  const { return 3*n_read() + n_gates(); }
    int n_state() const { return n_heads*rank*rank; }
};

// y = x W with W [n_in, n_out] stored by rows of `stride` elements; columns n_out..stride are zero
struct llama_deltamem_matrix {
    int64_t n_in   = 0;
    int64_t n_out  = 0;
    int64_t stride = 0;
    const float    * f32  = nullptr; // one of the two
    const uint16_t * bf16 = nullptr;
};

struct llama_deltamem_kernels {
    // y[t, c] += sum_i x[t, i] w[i, c] for t in [0, n_tokens), c in [c0, c1)
    void (*accumulate)(const llama_deltamem_matrix & w, const float * x, int64_t x_stride, float * y, int64_t y_stride,
            int64_t n_tokens, int64_t c0, int64_t c1);

    // raw projections q | k | v | gates -> what the rule needs: tanh and l2 norm, sigmoid; in place
    void (*activate)(const llama_deltamem_rule & rule, const float * gate_bias, float * p, int64_t p_stride, int64_t n_tokens);

    // the rule over tokens in order, on activated projections
    // slot[t]: which of the states token t belongs to; write[t]: 0 reads only
    // states [n_slots, n_heads, rank, rank]; reads [n_tokens, n_heads*rank]
    // tmp [rank*rank + 4*rank]
    void (*scan)(const llama_deltamem_rule & rule, const float * p, int64_t p_stride, const int32_t * slot,
            const uint8_t * write, int64_t n_tokens, float * states, float * reads, float * tmp);

    const char * name;
};

// the best set that this processor has; decided once
const llama_deltamem_kernels & llama_deltamem_kernels_get();
