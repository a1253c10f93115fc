#include "llama-deltamem-rows.h"

#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <stdexcept>

llama_deltamem_rows::llama_deltamem_rows(const llama_deltamem_weights & w, int64_t n_seqs) :
    n_state(w.rule.n_state()), side(n_seqs, 0) {
    std::vector<ggml_backend_buffer_type_t> bufts;
    for (size_t i = 0; i < w.layers.size(); ++i) {
        const auto buft = ggml_backend_buffer_get_type(w.layers[i].proj.tensor->buffer);
        const size_t d  = std::find(bufts.begin(), bufts.end(), buft) - bufts.begin();
        if (d == bufts.size()) {
            bufts.push_back(buft);
            devices.emplace_back();
        }
        places.push_back({ d, (int64_t) devices[d].layers.size() });
        devices[d].layers.push_back((int) i);
    }
    for (size_t d = 0; d < devices.size(); ++d) {
        ctxs.emplace_back(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
        devices[d].tensor = ggml_new_tensor_2d(ctxs.back().get(), GGML_TYPE_F32, n_state*devices[d].layers.size(), 2*n_seqs);
        bufs.emplace_back(ggml_backend_alloc_ctx_tensors_from_buft(ctxs.back().get(), bufts[d]));
        if (!bufs.back()) {
            throw std::runtime_error(format("the states of %lld sequences do not fit into the memory of %s: use fewer sequences or fewer GPU layers",
                    (long long) n_seqs, ggml_backend_buft_name(bufts[d])));
        }
    }
    clear(-1);
}

size_t llama_deltamem_rows::n_bytes() const {
    size_t n = 0;
    for (const auto & buf : bufs) {
        n += ggml_backend_buffer_get_size(buf.get());
    }
    return n;
}

void llama_deltamem_rows::get(llama_seq_id seq, float * state) const {
    std::vector<float> row;
    for (const auto & d : devices) {
        row.resize(d.tensor->ne[0]);
        ggml_backend_tensor_get(d.tensor, row.data(), row_now(seq)*d.tensor->nb[1], d.tensor->nb[1]);
        for (size_t i = 0; i < d.layers.size(); ++i) {
            std::copy_n(row.data() + i*n_state, n_state, state + d.layers[i]*n_state);
        }
    }
}

void llama_deltamem_rows::set(llama_seq_id seq, const float * state) {
    std::vector<float> row;
    for (const auto & d : devices) {
        row.resize(d.tensor->ne[0]);
        for (size_t i = 0; i < d.layers.size(); ++i) {
            std::copy_n(state + d.layers[i]*n_state, n_state, row.data() + i*n_state);
        }
        ggml_backend_tensor_set(d.tensor, row.data(), row_now(seq)*d.tensor->nb[1], d.tensor->nb[1]);
    }
}

void llama_deltamem_rows::clear(llama_seq_id seq) {
    if (seq < 0) {
        for (const auto & buf : bufs) {
            ggml_backend_buffer_clear(buf.get(), 0);
        }
        return;
    }
    set(seq, std::vector<float>(n_state*places.size(), 0.0f).data());
}

ggml_tensor * llama_deltamem_rows::view(ggml_context * ctx, int index) const {
    const auto & p = places[index];
    ggml_tensor * t = devices[p.device].tensor;
    return ggml_view_2d(ctx, t, n_state, t->ne[1], t->nb[1], p.index*n_state*sizeof(float));
}
