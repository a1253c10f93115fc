#pragma once

// The states of a context's sequences in the memory where their layers live. Knows layers and sequences, not graphs.

#include "llama-deltamem-adapter.h"

#include "llama.h"

#include <vector>

// A sequence has two rows: a graph reads the one that holds now and writes the other, and the two change places once the
// graph has been computed. So what fails leaves the state as it was, and no operator writes what another one reads.
class llama_deltamem_rows {
public:
    // throws std::runtime_error when a device has no room for them
    llama_deltamem_rows(const llama_deltamem_weights & weights, int64_t n_seqs);

    size_t n_bytes() const;

    // state [n_layers, n_state] of a sequence, by way of the host; nothing may be computing
    void get  (llama_seq_id seq, float * state) const;
    void set  (llama_seq_id seq, const float * state);
    void clear(llama_seq_id seq); // < 0: all

    int64_t row_now (llama_seq_id seq) const { return 2*seq + side[seq]; }
    int64_t row_next(llama_seq_id seq) const { return 2*seq + 1 - side[seq]; }
    void    turn    (llama_seq_id seq) { side[seq] = 1 - side[seq]; }

    // the rows of adapted layer `index`: [n_state, 2*n_seqs]
    ggml_tensor * view(ggml_context * ctx, int index) const;

private:
    // A device has one tensor, so that a state moves in one piece: [n_state*n_layers, 2*n_seqs]
    struct device {
        ggml_tensor *    tensor = nullptr;
        std::vector<int> layers; // adapted layers in it, ascending
    };

    struct place {
        size_t  device;
        int64_t index; // among the device's layers
    };

    const int64_t n_state; // floats of a layer

    std::vector<device>  devices;
    std::vector<place>   places; // per adapted layer
    std::vector<uint8_t> side;   // per sequence

    std::vector<ggml_context_ptr>        ctxs;
    std::vector<ggml_backend_buffer_ptr> bufs;
};
