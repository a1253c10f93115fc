#pragma once

// The states of a context's sequences, and when they are written. Knows batches and spans, not graphs.

#include "llama-deltamem-adapter.h"
#include "llama-deltamem-rows.h"

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

struct llama_batch_ext;
struct llama_ubatch;

class llama_deltamem_memory {
public:
    // n_seqs: how many sequences the context can have
    llama_deltamem_memory(const llama_deltamem_weights & weights, int64_t n_seqs);

    // states; throw std::runtime_error with one sentence

    size_t n_floats() const { return n_floats_seq; }
    size_t n_bytes()  const;
    void get  (llama_seq_id seq, float * state) const;
    void set  (llama_seq_id seq, const float * state);
    void clear(llama_seq_id seq); // < 0: all
    void copy (llama_seq_id src, llama_seq_id dst);

    void set_write(bool value) { write_on = value; }
    void set_spans(const int32_t * ids, size_t n);
    void pass_begin(llama_seq_id seq);
    void pass_drop (llama_seq_id seq);
    void pass_end  (llama_seq_id seq);

    // decode, in this order; begin throws std::runtime_error with one sentence

    void batch_begin(const llama_batch_ext & batch);
    void ubatch_begin(const llama_ubatch & ubatch, int n_threads);
    void ubatch_end(bool ok) noexcept;
    void batch_end();

    // the graph's operators, between ubatch_begin and ubatch_end; every thread may call them

    int64_t n_tokens() const { return (int64_t) slot.size(); }

    // per token: which of the micro-batch's sequences, in the order in which they appear, and whether it writes at once
    const std::vector<int32_t> & slots() const { return slot; }
    bool writes(int64_t token) const { return token_write[token] != 0; }

    // raw projections [n_tokens, stride] of adapted layer `index` go into the sums of the tokens' spans
    void add_to_spans(int index, const float * p, int64_t p_stride);

    // where the states are with GRAPH, else null
    const llama_deltamem_rows * device_rows() const { return rows.get(); }
    int64_t row_now (int64_t of_slot) const { return rows->row_now (slot_seq[of_slot]); }
    int64_t row_next(int64_t of_slot) const { return rows->row_next(slot_seq[of_slot]); }

    // the operators that run on the host

    // memory of thread ith for the projections [n_tokens, stride]
    float * projections(int ith);

    // Runs the rule of adapted layer `index` over the micro-batch, from raw projections in projections(ith).
    // Every thread that needs the reads runs it for itself, which costs no more time than waiting for one; the
    // thread `keeps` = true keeps the outcome. Returns the reads [n_tokens, n_read] in memory of thread ith.
    const float * scan(int index, int ith, bool keeps);

    // reads [n_tokens, n_read] of the last scan that was kept
    const float * reads() const { return reads_kept.data(); }

private:
    struct span_sum {
        int64_t n = 0;
        std::vector<double> sum; // [n_layers, n_proj - n_read]: k | v | gates, raw
    };

    const llama_deltamem_weights & w;
    const llama_deltamem_kernels & kernels;

    const int64_t n_state;      // floats of a layer
    const int64_t n_floats_seq; // floats of a sequence
    const int64_t stride;       // of a row of projections

    std::map<llama_seq_id, std::vector<float>> states; // absent: zero
    std::unique_ptr<llama_deltamem_rows>       rows;   // instead of them, with GRAPH

    bool write_on = true;
    std::set<llama_seq_id> batch_seqs; // of the batch
    int64_t n_left = 0; // tokens of the batch that no micro-batch has brought yet; a llama_decode that fails leaves some

    // spans: of the next batch, of this batch
    std::vector<int32_t> spans_next, spans;
    bool has_spans_next = false, has_spans = false;

    std::map<llama_seq_id, bool> passes; // open ones, by pass_begin: whether their writes were dropped
    std::map<std::pair<llama_seq_id, int32_t>, span_sum> sums; // of all passes; ascending: the order of the writes

    // the micro-batch
    std::vector<llama_seq_id> slot_seq;   // its sequences
    std::vector<int32_t>      slot;       // per token: index into slot_seq
    std::vector<uint8_t>      token_write;
    std::vector<span_sum *>   token_sum;  // or null
    std::vector<const float *> slot_state; // states before it
    std::vector<float>        next;       // [n_slots, n_layers, n_state] states after it
    std::vector<float>        reads_kept;

    std::vector<std::vector<float>> scratch; // per thread
    int64_t n_scratch_proj = 0, n_scratch_states = 0, n_scratch_reads = 0;

    void check_closed(llama_seq_id seq, const char * what) const;
    void batch_failed();
    void settle(); // after a llama_decode that failed outside of its micro-batches
    void drop_spans (llama_seq_id seq);
    void put(llama_seq_id seq, std::vector<float> && state);

    std::vector<float> state_of  (llama_seq_id seq) const;
    std::vector<float> with_spans(llama_seq_id seq) const; // its state after the writes of its spans; empty: it has none
};
