#include "llama-deltamem-memory.h"

#include "llama-batch.h"
#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <stdexcept>

llama_deltamem_memory::llama_deltamem_memory(const llama_deltamem_weights & weights, int64_t n_seqs) :
    w(weights), kernels(llama_deltamem_kernels_get()),
    n_state(weights.rule.n_state()), n_floats_seq(n_state*(int64_t) weights.layers.size()),
    stride(weights.layers.front().proj.matrix.stride) {
    if (weights.compute == LLAMA_DELTAMEM_COMPUTE_GRAPH) {
        rows = std::make_unique<llama_deltamem_rows>(weights, n_seqs);
    }
}

size_t llama_deltamem_memory::n_bytes() const {
    size_t n = (next.capacity() + reads_kept.capacity())*sizeof(float) + (rows ? rows->n_bytes() : 0);
    for (const auto & it : states) {
        n += it.second.capacity()*sizeof(float);
    }
    for (const auto & s : scratch) {
        n += s.capacity()*sizeof(float);
    }
    for (const auto & it : sums) {
        n += it.second.sum.capacity()*sizeof(double);
    }
    return n;
}

void llama_deltamem_memory::check_closed(llama_seq_id seq, const char * what) const {
    if (seq < 0 ? !passes.empty() : passes.count(seq) > 0) {
        throw std::runtime_error(format("the state can't be %s while a pass is open: end the pass first", what));
    }
}

void llama_deltamem_memory::get(llama_seq_id seq, float * state) const {
    if (rows) {
        rows->get(seq, state);
        return;
    }
    const auto it = states.find(seq);
    if (it == states.end()) {
        std::fill(state, state + n_floats_seq, 0.0f);
    } else {
        std::copy(it->second.begin(), it->second.end(), state);
    }
}

void llama_deltamem_memory::set(llama_seq_id seq, const float * state) {
    check_closed(seq, "set");
    if (!std::all_of(state, state + n_floats_seq, [](float f) { return std::isfinite(f); })) {
        throw std::runtime_error("the state holds NaN or infinite numbers and was refused: restore an earlier one");
    }
    put(seq, std::vector<float>(state, state + n_floats_seq));
}

void llama_deltamem_memory::put(llama_seq_id seq, std::vector<float> && state) {
    if (rows) {
        rows->set(seq, state.data());
    } else {
        states.insert_or_assign(seq, std::move(state));
    }
}

std::vector<float> llama_deltamem_memory::state_of(llama_seq_id seq) const {
    std::vector<float> state(n_floats_seq);
    get(seq, state.data());
    return state;
}

void llama_deltamem_memory::clear(llama_seq_id seq) {
    check_closed(seq, "cleared");
    if (rows) {
        rows->clear(seq);
    } else if (seq < 0) {
        states.clear();
    } else {
        states.erase(seq);
    }
}

void llama_deltamem_memory::copy(llama_seq_id src, llama_seq_id dst) {
    check_closed(src, "copied");
    check_closed(dst, "copied");
    if (src != dst) {
        put(dst, state_of(src));
    }
}

void llama_deltamem_memory::set_spans(const int32_t * ids, size_t n) {
    spans_next.assign(ids, ids + n);
    has_spans_next = true;
}

void llama_deltamem_memory::pass_begin(llama_seq_id seq) {
    settle();
    if (!passes.emplace(seq, false).second) {
        throw std::runtime_error("a pass is open already: end it first");
    }
}

void llama_deltamem_memory::pass_drop(llama_seq_id seq) {
    settle();
    const auto it = passes.find(seq);
    if (it != passes.end()) {
        drop_spans(seq);
        it->second = true;
    }
}

void llama_deltamem_memory::pass_end(llama_seq_id seq) {
    settle();
    const auto it = passes.find(seq);
    if (it == passes.end()) {
        throw std::runtime_error("no pass is open: begin one first");
    }
    if (it->second) {
        passes.erase(it);
        drop_spans(seq); // of what was decoded after the failure
        throw std::runtime_error("a decode of this pass failed, so its span writes were dropped: restore the state and run the pass again");
    }
    if (auto state = with_spans(seq); !state.empty()) {
        put(seq, std::move(state));
    }
    passes.erase(it);
    drop_spans(seq);
}

void llama_deltamem_memory::batch_failed() {
    for (const llama_seq_id seq : batch_seqs) {
        drop_spans(seq);
        const auto it = passes.find(seq);
        if (it != passes.end()) {
            it->second = true;
        }
    }
    batch_seqs.clear();
    n_left = 0;
}

void llama_deltamem_memory::settle() {
    if (n_left > 0) {
        batch_failed();
    }
}

void llama_deltamem_memory::batch_begin(const llama_batch_ext & batch) {
    const size_t n_tokens = batch.tokens.size();
    settle();
    batch_seqs.clear();
    for (const auto & token : batch.tokens) {
        batch_seqs.insert(token.seq_ids.begin(), token.seq_ids.end());
    }
    n_left    = (int64_t) n_tokens;
    has_spans = has_spans_next;
    has_spans_next = false;
    spans.swap(spans_next);
    if (has_spans && spans.size() != n_tokens) {
        throw std::runtime_error(format("span ids for %zu tokens were set, but the batch has %zu: set one id per token", spans.size(), n_tokens));
    }
    for (size_t i = 0; i < n_tokens; ++i) {
        const size_t n_seqs = batch.tokens[i].seq_ids.size();
        if (n_seqs != 1) {
            throw std::runtime_error(format("token %zu belongs to %zu sequences, with a memory it must be one: decode it once and copy the sequence", i, n_seqs));
        }
    }
}

void llama_deltamem_memory::ubatch_begin(const llama_ubatch & ubatch, int n_threads) {
    const int64_t n      = ubatch.n_tokens;
    if (n > n_left) {
        throw std::runtime_error("llama_encode can't run with a deltamem adapter: detach it first, or use llama_decode");
    }
    n_left -= n;
    const bool    means  = has_spans && w.granularity != LLAMA_DELTAMEM_TOKEN;
    const int     n_kvg  = w.rule.n_proj() - w.rule.n_read();

    slot.resize(n);
    token_write.resize(n);
    token_sum.resize(n);
    slot_seq.clear();

    for (int64_t i = 0; i < n; ++i) {
        const llama_seq_id seq = ubatch.seq_id[i][0];
        // a micro-batch has few sequences, and neighbours mostly share one
        if (i > 0 && slot_seq[slot[i - 1]] == seq) {
            slot[i] = slot[i - 1];
        } else {
            const auto it = std::find(slot_seq.begin(), slot_seq.end(), seq);
            slot[i] = (int32_t) (it - slot_seq.begin());
            if (it == slot_seq.end()) {
                slot_seq.push_back(seq);
            }
        }
        // the micro-batch may hold the batch's tokens in another order
        const int32_t span = has_spans ? spans[ubatch.data->batch_idxs[i]] : 0;
        token_write[i] = write_on && !means && span >= 0;
        token_sum[i]   = nullptr;
        if (write_on && means && span >= 0) {
            auto & s = sums[{ seq, span }];
            if (s.sum.empty()) {
                s.sum.assign(n_kvg*w.layers.size(), 0.0);
            }
            s.n++;
            token_sum[i] = &s;
        }
    }

    if (rows) {
        return; // the graph has all the rest
    }

    // nothing needs memory any more once the micro-batch has been computed
    slot_state.clear();
    for (const llama_seq_id seq : slot_seq) {
        if (!states.count(seq)) {
            states.emplace(seq, std::vector<float>(n_floats_seq, 0.0f));
        }
        slot_state.push_back(states.at(seq).data());
    }

    const int64_t n_slots = (int64_t) slot_seq.size();
    const int64_t rank    = w.rule.rank;
    next.resize(n_slots*n_floats_seq);
    reads_kept.resize(n*w.rule.n_read());

    n_scratch_proj   = n*stride;
    n_scratch_states = n_slots*n_state;
    n_scratch_reads  = n*w.rule.n_read();
    scratch.resize(std::max((int64_t) scratch.size(), (int64_t) n_threads));
    for (auto & s : scratch) {
        s.resize(std::max((int64_t) s.size(), n_scratch_proj + n_scratch_states + n_scratch_reads + rank*rank + 4*rank));
    }
}

void llama_deltamem_memory::add_to_spans(int index, const float * p, int64_t p_stride) {
    const int n_read = w.rule.n_read();
    const int n_kvg  = w.rule.n_proj() - n_read;
    for (int64_t t = 0; t < n_tokens(); ++t) {
        if (token_sum[t]) {
            double * sum = token_sum[t]->sum.data() + (int64_t) index*n_kvg;
            for (int i = 0; i < n_kvg; ++i) {
                sum[i] += p[t*p_stride + n_read + i];
            }
        }
    }
}

float * llama_deltamem_memory::projections(int ith) {
    return scratch[ith].data();
}

const float * llama_deltamem_memory::scan(int index, int ith, bool keeps) {
    const auto &  layer   = w.layers[index];
    const int64_t n       = n_tokens();
    const int64_t n_slots = (int64_t) slot_seq.size();
    const int     n_read  = w.rule.n_read();

    float * p     = scratch[ith].data();
    float * local = p + n_scratch_proj;
    float * reads = local + n_scratch_states;
    float * tmp   = reads + n_scratch_reads;

    if (keeps) {
        add_to_spans(index, p, stride);
    }

    for (int64_t s = 0; s < n_slots; ++s) {
        memcpy(local + s*n_state, slot_state[s] + index*n_state, n_state*sizeof(float));
    }
    kernels.activate(w.rule, layer.gate_bias.data(), p, stride, n);
    kernels.scan(w.rule, p, stride, slot.data(), token_write.data(), n, local, reads, tmp);

    if (keeps) {
        for (int64_t s = 0; s < n_slots; ++s) {
            memcpy(next.data() + s*n_floats_seq + index*n_state, local + s*n_state, n_state*sizeof(float));
        }
        memcpy(reads_kept.data(), reads, n*n_read*sizeof(float));
    }
    return reads;
}

void llama_deltamem_memory::ubatch_end(bool ok) noexcept {
    if (ok) {
        for (size_t s = 0; s < slot_seq.size(); ++s) {
            // a sequence that was only read stays as it was
            bool written = false;
            for (size_t i = 0; i < slot.size() && !written; ++i) {
                written = slot[i] == (int32_t) s && token_write[i];
            }
            if (written && rows) {
                rows->turn(slot_seq[s]);
            } else if (written) {
                std::copy_n(next.data() + s*n_floats_seq, n_floats_seq, states.find(slot_seq[s])->second.data());
            }
        }
    } else {
        batch_failed();
    }
    slot.clear(); // no tokens: operators that run outside of a micro-batch do nothing
}

void llama_deltamem_memory::batch_end() {
    std::map<llama_seq_id, std::vector<float>> written;
    try {
        for (const llama_seq_id seq : batch_seqs) {
            if (auto state = passes.count(seq) ? std::vector<float>() : with_spans(seq); !state.empty()) {
                written.emplace(seq, std::move(state));
            }
        }
        for (auto & it : written) {
            put(it.first, std::move(it.second));
            drop_spans(it.first);
        }
    } catch (...) {
        batch_failed();
        throw;
    }
    batch_seqs.clear();
}

void llama_deltamem_memory::drop_spans(llama_seq_id seq) {
    sums.erase(sums.lower_bound({ seq, INT32_MIN }), sums.upper_bound({ seq, INT32_MAX }));
}

std::vector<float> llama_deltamem_memory::with_spans(llama_seq_id seq) const {
    const int n_read = w.rule.n_read();
    const int n_kvg  = w.rule.n_proj() - n_read;
    const int rank   = w.rule.rank;

    const auto begin = sums.lower_bound({ seq, INT32_MIN });
    const auto end   = sums.upper_bound({ seq, INT32_MAX });
    const int64_t n  = std::distance(begin, end);
    if (n == 0) {
        return {};
    }

    std::vector<float>   p(n*stride), reads(n*n_read), tmp(rank*rank + 4*rank);
    std::vector<int32_t> slots(n, 0);
    std::vector<uint8_t> writes(n, 1);
    auto state = state_of(seq);

    for (size_t l = 0; l < w.layers.size(); ++l) {
        std::fill(p.begin(), p.end(), 0.0f);
        int64_t row = 0;
        for (auto s = begin; s != end; ++s, ++row) {
            const double * sum = s->second.sum.data() + l*n_kvg;
            for (int i = 0; i < n_kvg; ++i) {
                p[row*stride + n_read + i] = (float) (sum[i]/(double) s->second.n);
            }
        }
        kernels.activate(w.rule, w.layers[l].gate_bias.data(), p.data(), stride, n);
        kernels.scan(w.rule, p.data(), stride, slots.data(), writes.data(), n, state.data() + l*n_state, reads.data(), tmp.data());
    }
    return state;
}
