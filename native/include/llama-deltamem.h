#pragma once

// δ-mem for llama.cpp: a frozen model with a small recurrent memory in its attention layers (arXiv 2605.12357).
//
// Every adapted layer keeps a float32 state S [n_heads, rank, rank] (row = value dimension, column = key dimension)
// per sequence. For each token: read r = S q, write S <- diag(keep) S - diag(erase) (S k) k^T + diag(write) v k^T,
// correct the layer's q, k, v and attention output by D r.
//
// No function of this interface throws or aborts. Those that return int32_t return 0 on success and -1 on failure;
// those that return a pointer or a size return NULL or 0. llama_deltamem_last_error() has the text of the calling
// thread's last call, empty when it succeeded. A failed llama_decode leaves its cause there, when δ-mem was the cause.

#include "llama.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLAMA_DELTAMEM_API_VERSION 3
#define LLAMA_DELTAMEM_MAX_RANK    64
#define LLAMA_DELTAMEM_MAX_HEADS   64

struct llama_deltamem_adapter;

enum llama_deltamem_granularity {
    LLAMA_DELTAMEM_TOKEN         = 0, // every token writes (TSW)
    LLAMA_DELTAMEM_MESSAGE_MEAN  = 1, // one write per message after the pass (SSW)
    LLAMA_DELTAMEM_SENTENCE_MEAN = 2, // one write per sentence after the pass
};

enum llama_deltamem_state_update {
    LLAMA_DELTAMEM_STANDARD       = 0, // keep lambda, erase beta,          write beta
    LLAMA_DELTAMEM_LAMBDA_OUTSIDE = 1, // keep lambda, erase lambda * beta, write beta
    LLAMA_DELTAMEM_NO_LAMBDA      = 2, // keep 1,      erase beta,          write beta
};

enum llama_deltamem_compute {
    LLAMA_DELTAMEM_COMPUTE_AUTO  = 0, // FUSED when the model uses the local CPU alone, else GRAPH when the devices can, else OPS
    LLAMA_DELTAMEM_COMPUTE_FUSED = 1, // kernels of this library on the CPU, in place
    LLAMA_DELTAMEM_COMPUTE_OPS   = 2, // ggml operators where the layer lives, only the scan on the local CPU
    LLAMA_DELTAMEM_COMPUTE_GRAPH = 3, // ggml operators where the layer lives, and the states in its memory
};

struct llama_deltamem_info {
    uint32_t n_layers;     // adapted layers
    uint32_t n_heads;      // state heads per layer
    uint32_t rank;
    uint32_t granularity;  // enum llama_deltamem_granularity
    uint32_t compute;      // enum llama_deltamem_compute, resolved
    uint64_t n_bytes;      // memory that the weights take
};

LLAMA_API int32_t      llama_deltamem_api_version(void);
LLAMA_API const char * llama_deltamem_last_error (void);

// Adapter: the weights, read from a GGUF file of adapter.type "deltamem" and checked against the model.
// It keeps no pointer into the model, so the two may be freed in any order.
LLAMA_API struct llama_deltamem_adapter * llama_deltamem_adapter_init(
        const struct llama_model * model, const char * path, int32_t compute); // enum llama_deltamem_compute
LLAMA_API void    llama_deltamem_adapter_free  (struct llama_deltamem_adapter * adapter);
LLAMA_API int32_t llama_deltamem_adapter_info  (const struct llama_deltamem_adapter * adapter, struct llama_deltamem_info * info);
// writes the indices of the n adapted layers, ascending; n must be info.n_layers
LLAMA_API int32_t llama_deltamem_adapter_layers(const struct llama_deltamem_adapter * adapter, int32_t * layers, size_t n);

// A context has at most one adapter. Attaching shares the weights, so the adapter may be freed while it is attached.
LLAMA_API int32_t llama_deltamem_attach(struct llama_context * ctx, const struct llama_deltamem_adapter * adapter);
LLAMA_API int32_t llama_deltamem_detach(struct llama_context * ctx);

// Parts of which the last computed graph consists, with an adapter or without: 1 when all of it ran on one device
LLAMA_API int32_t llama_deltamem_n_splits(const struct llama_context * ctx);

// State of one sequence: n floats [n_layers, n_heads, rank, rank]. It is independent of the KV cache:
// llama_memory_* never touches it. A sequence that was never written has the zero state.
LLAMA_API size_t  llama_deltamem_state_n_floats(const struct llama_context * ctx);
LLAMA_API int32_t llama_deltamem_state_get  (const struct llama_context * ctx, llama_seq_id seq, float * state, size_t n);
LLAMA_API int32_t llama_deltamem_state_set  (struct llama_context * ctx, llama_seq_id seq, const float * state, size_t n);
LLAMA_API int32_t llama_deltamem_state_clear(struct llama_context * ctx, llama_seq_id seq); // seq < 0: all sequences
LLAMA_API int32_t llama_deltamem_state_copy (struct llama_context * ctx, llama_seq_id src, llama_seq_id dst);
// bytes that the states and the scratch memory of this context take
LLAMA_API size_t  llama_deltamem_state_n_bytes(const struct llama_context * ctx);

// Writing is on after attaching; while it is off, tokens read and leave the state as it is.
LLAMA_API int32_t llama_deltamem_set_write(struct llama_context * ctx, bool write);

// Span ids of the tokens of the next llama_decode, in the order of its batch: the message or sentence that a token
// belongs to. Tokens with id -1 are read but not written. Used up by that llama_decode, whatever it returns.
// Without span ids every token writes at once, whatever the adapter's granularity.
LLAMA_API int32_t llama_deltamem_set_spans(struct llama_context * ctx, const int32_t * spans, size_t n_tokens);

// A pass is what reads one and the same state of a sequence with message and sentence writes: one llama_decode, or all
// calls between begin and end. Its writes happen at its end, in ascending order of the span ids. While it is open the
// sequence's state can't be set, cleared or copied. A llama_decode that fails drops the span writes of the passes of
// all sequences in it; so does drop for one sequence. Ending a pass whose writes were dropped fails.
LLAMA_API int32_t llama_deltamem_pass_begin(struct llama_context * ctx, llama_seq_id seq);
LLAMA_API int32_t llama_deltamem_pass_drop (struct llama_context * ctx, llama_seq_id seq); // nothing when none is open
LLAMA_API int32_t llama_deltamem_pass_end  (struct llama_context * ctx, llama_seq_id seq);

// For llama_set_abort_callback with a bool as data: stops the running llama_decode at the next node of its graph when
// the bool is true. A callback into Python would take the interpreter's lock once per node.
LLAMA_API bool llama_deltamem_abort_if_set(void * data);

// Threads that stay between calls, for llama_attach_threadpool; free them after the contexts that use them. Without
// OpenMP ggml would make new ones for every token. They wait busily for about a millisecond, then sleep: long enough
// for the next token of a reply, too short to be in anybody's way.
LLAMA_API struct ggml_threadpool * llama_deltamem_threadpool_init(int32_t n_threads);
LLAMA_API void                     llama_deltamem_threadpool_free(struct ggml_threadpool * threadpool);

// The recurrence alone, for tests and tools: one layer, one sequence, token writes.
struct llama_deltamem_scan_params {
    uint32_t rank;
    uint32_t n_heads;
    uint32_t state_update; // enum llama_deltamem_state_update
    bool     rankwise_gates;
    bool     couple_lambda;
    bool     normalize_qk;
};
// p         [n_tokens, n_proj]: raw projections, packed q | k | v | beta [| lambda], head-major; overwritten
// gate_bias [n_gates]: beta [| lambda]
// write     [n_tokens] or NULL for all
// state     [n_heads, rank, rank], updated
// reads     [n_tokens, n_heads*rank], written
LLAMA_API int32_t llama_deltamem_scan(
        const struct llama_deltamem_scan_params * params, float * p, const float * gate_bias, const uint8_t * write,
        size_t n_tokens, float * state, float * reads);

#ifdef __cplusplus
}
#endif
