#include "llama-deltamem-graph.h"

#include "llama-deltamem-placement.h"

#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

// Up to this many tokens every thread projects for itself as a part of the scan: sharing the work would cost one more
// barrier, and that costs more. More tokens are worth a node of their own.
static constexpr int64_t N_TOKENS_FEW = 2;

llama_deltamem::llama_deltamem(std::shared_ptr<const llama_deltamem_weights> weights_, const llama_model & model, int64_t n_seqs) :
    weights(std::move(weights_)), memory(*weights, n_seqs), recurrence(*weights, memory), scan_of(weights->layers.size(), nullptr) {
    hooks.reserve(weights->layers.size()*DELTAMEM_N_HEADS);
    const auto add = [&](const ggml_tensor * w, size_t index, llama_deltamem_head head, bool fused_qkv) {
        const int32_t il = weights->layers[index].il;
        hooks.push_back({ this, &weights->layers[index], (int) index, head, fused_qkv, {
            llama_deltamem_width(model, il, DELTAMEM_Q), llama_deltamem_width(model, il, DELTAMEM_K), llama_deltamem_width(model, il, DELTAMEM_V) } });
        hook_of[w] = &hooks.back();
    };
    for (size_t i = 0; i < weights->layers.size(); ++i) {
        const auto & base = model.layers[weights->layers[i].il];
        if (base.wqkv) {
            add(base.wqkv, i, DELTAMEM_Q, true);
        } else {
            add(base.wq, i, DELTAMEM_Q, false);
            if (weights->heads[DELTAMEM_K]) {
                add(base.wk, i, DELTAMEM_K, false);
            }
            if (weights->heads[DELTAMEM_V]) {
                add(base.wv, i, DELTAMEM_V, false);
            }
        }
        add(base.wo, i, DELTAMEM_O, false);
    }
    reached.assign(hooks.size(), 0);
}

//
// decode
//

bool llama_deltamem::batch_begin(const llama_batch_ext & batch) {
    llama_deltamem_set_error("");
    return llama_deltamem_guarded(false, [&] {
        memory.batch_begin(batch);
        return true;
    });
}

bool llama_deltamem::ubatch_begin(const llama_ubatch & ubatch, int n_threads) {
    const bool ok = llama_deltamem_guarded(false, [&] {
        if (!is_checked) {
            const auto it = std::find(reached.begin(), reached.end(), 0);
            if (misfit.empty() && it != reached.end()) {
                const auto & h = hooks[it - reached.begin()];
                misfit = format("layer %d computes its attention in a way that δ-mem can't reach", weights->layers[h.index].il);
            }
            is_checked = true;
        }
        if (!misfit.empty()) { // a later graph may show what the first did not
            throw std::runtime_error(misfit + ": use another model, or an adapter whose layers leave it out");
        }
        memory.ubatch_begin(ubatch, n_threads);
        if (weights->compute == LLAMA_DELTAMEM_COMPUTE_GRAPH) {
            recurrence.begin(ubatch);
        }
        return true;
    });
    if (!ok) {
        memory.ubatch_end(false);
    }
    return ok;
}

ggml_status llama_deltamem::ubatch_end(ggml_status status, ggml_backend_sched_t sched) {
    if (status == GGML_STATUS_SUCCESS && weights->compute == LLAMA_DELTAMEM_COMPUTE_GRAPH && weights->granularity != LLAMA_DELTAMEM_TOKEN) {
        status = llama_deltamem_guarded(GGML_STATUS_FAILED, [&] {
            ggml_backend_sched_synchronize(sched);
            recurrence.keep_spans();
            return GGML_STATUS_SUCCESS;
        });
    }
    memory.ubatch_end(status == GGML_STATUS_SUCCESS);
    return status;
}

bool llama_deltamem::batch_end() {
    return llama_deltamem_guarded(false, [&] {
        memory.batch_end();
        return true;
    });
}

//
// graph
//

ggml_tensor * llama_deltamem::build_mm(const llm_graph_context & graph, const ggml_tensor * w, ggml_tensor * x, ggml_tensor * y) {
    const auto it = hook_of.find(w);
    if (it == hook_of.end()) {
        return y;
    }
    const hook & h = *it->second;
    reached[&h - hooks.data()] = 1;

    ggml_tensor * & scan = scan_of[h.index];
    if (h.head == DELTAMEM_Q) {
        return build_scan(graph, h, x, y);
    }
    if (!scan || scan->ne[1] != y->ne[1]) {
        // the reads of another graph or of other tokens must never be used
        misfit = format("layer %d computes its %s in a way that δ-mem can't reach", weights->layers[h.index].il,
                h.head == DELTAMEM_O ? "attention output" : "keys and values");
        return y;
    }
    if (weights->heads[h.head]) {
        y = build_delta(graph, h, y);
    }
    if (h.head == DELTAMEM_O) {
        scan = nullptr; // the layer is complete
    }
    return y;
}

// A custom operator is a pointer to a function of this process: no device but the local CPU can call it, and some, such
// as a remote one, say that they could.
static ggml_tensor * pinned(const llm_graph_context & graph, ggml_tensor * op) {
    ggml_backend_sched_set_tensor_backend(graph.sched, op, graph.backend_cpu);
    return op;
}

ggml_tensor * llama_deltamem::build_scan(const llm_graph_context & graph, const hook & h, ggml_tensor * x, ggml_tensor * y) {
    ggml_context * ctx    = graph.ctx0;
    const auto & layer    = weights->layers[h.index];
    const auto   n_tokens = x->ne[1];
    void * data = const_cast<hook *>(&h);

    if (weights->compute == LLAMA_DELTAMEM_COMPUTE_FUSED) {
        ggml_tensor * in = x;
        if (n_tokens > N_TOKENS_FEW) {
            in = pinned(graph, ggml_custom_4d(ctx, GGML_TYPE_F32, layer.proj.matrix.stride, n_tokens, 1, 1, &x, 1, op_project, GGML_N_TASKS_MAX, data));
        }
        return scan_of[h.index] = pinned(graph, ggml_custom_inplace(ctx, y, &in, 1, op_scan, GGML_N_TASKS_MAX, data));
    }

    if (n_tokens != (int64_t) graph.ubatch.n_tokens) {
        misfit = format("layer %d computes its attention for other tokens than those of the batch", weights->layers[h.index].il);
        return y;
    }
    ggml_tensor * p     = ggml_mul_mat(ctx, layer.proj.tensor, x);
    ggml_tensor * reads = weights->compute == LLAMA_DELTAMEM_COMPUTE_GRAPH ? recurrence.build(graph, h.index, p) :
        pinned(graph, ggml_custom_4d(ctx, GGML_TYPE_F32, weights->rule.n_read(), n_tokens, 1, 1, &p, 1, op_scan_only, 1, data));
    scan_of[h.index] = reads;

    if (h.fused_qkv) {
        ggml_tensor * delta = nullptr; // the corrections side by side; zeros where a head is not adapted
        for (const auto head : { DELTAMEM_Q, DELTAMEM_K, DELTAMEM_V }) {
            const auto & d = layer.delta[head];
            ggml_tensor * part = d.tensor ? ggml_mul_mat(ctx, d.tensor, reads) :
                ggml_fill(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, h.width[head], n_tokens), 0.0f);
            delta = delta ? ggml_concat(ctx, delta, part, 0) : part;
        }
        return ggml_add(ctx, y, delta);
    }
    return weights->heads[DELTAMEM_Q] ? build_delta(graph, h, y) : y;
}

ggml_tensor * llama_deltamem::build_delta(const llm_graph_context & graph, const hook & h, ggml_tensor * y) {
    ggml_context * ctx = graph.ctx0;
    const auto & layer = weights->layers[h.index];
    ggml_tensor * scan = scan_of[h.index];

    if (weights->compute == LLAMA_DELTAMEM_COMPUTE_FUSED) {
        // the reads lie beside the graph; naming the scan as an input puts it first
        return pinned(graph, ggml_custom_inplace(ctx, y, &scan, 1, op_delta, GGML_N_TASKS_MAX, const_cast<hook *>(&h)));
    }
    ggml_tensor * delta = ggml_mul_mat(ctx, layer.delta[h.head].tensor, scan);
    if (h.head == DELTAMEM_O && weights->o_norm_eps > 0.0f) {
        delta = ggml_mul(ctx, ggml_rms_norm(ctx, delta, weights->o_norm_eps), layer.o_norm_tensor);
    }
    return ggml_add(ctx, y, delta);
}

//
// operators
//

static void split(int64_t n, int64_t step, int ith, int nth, int64_t & begin, int64_t & end) {
    const int64_t per = ((n + step - 1)/step + nth - 1)/nth*step;
    begin = std::min(n, per*ith);
    end   = std::min(n, begin + per);
}

static float * row(const ggml_tensor * t, int64_t i) {
    return (float *) ((char *) t->data + i*t->nb[1]);
}

void llama_deltamem::op_project(ggml_tensor * dst, int ith, int nth, void * data) {
    const auto & h = *(const hook *) data;
    const auto & m = h.layer->proj.matrix;
    const ggml_tensor * x = dst->src[0];

    int64_t t0, t1;
    split(dst->ne[1], 4, ith, nth, t0, t1);
    if (t0 < t1) {
        memset(row(dst, t0), 0, (t1 - t0)*dst->nb[1]);
        llama_deltamem_kernels_get().accumulate(m, row(x, t0), x->nb[1]/sizeof(float), row(dst, t0), m.stride, t1 - t0, 0, m.n_out);
    }
}

// y[:, col0:] += D reads; every thread takes a part
void llama_deltamem::correct(const hook & h, llama_deltamem_head head, const float * reads, ggml_tensor * y, int64_t col0, int ith, int nth) {
    const auto &  m        = h.layer->delta[head].matrix;
    const auto &  kernels  = llama_deltamem_kernels_get();
    const int64_t n_tokens = y->ne[1];
    const int64_t n_read   = weights->rule.n_read();
    const int64_t y_stride = y->nb[1]/sizeof(float);

    int64_t t0 = 0, t1 = n_tokens, c0 = 0, c1 = m.n_out;

    if (head == DELTAMEM_O && weights->o_norm_eps > 0.0f) {
        const auto & norm = h.layer->o_norm;
        split(n_tokens, 1, ith, nth, t0, t1);
        std::vector<float> delta(m.stride);
        for (int64_t t = t0; t < t1; ++t) {
            std::fill(delta.begin(), delta.end(), 0.0f);
            kernels.accumulate(m, reads + t*n_read, n_read, delta.data(), m.stride, 1, 0, m.n_out);
            double sum = 0.0;
            for (int64_t c = 0; c < m.n_out; ++c) {
                sum += (double) delta[c]*delta[c];
            }
            const float scale = 1.0f/std::sqrt((float) (sum/m.n_out) + weights->o_norm_eps);
            float * out = row(y, t) + col0;
            for (int64_t c = 0; c < m.n_out; ++c) {
                out[c] += delta[c]*scale*norm[c];
            }
        }
        return;
    }

    if (n_tokens >= nth*4) {
        split(n_tokens, 4, ith, nth, t0, t1);
    } else {
        split(m.n_out, 32, ith, nth, c0, c1);
    }
    if (t0 < t1 && c0 < c1) {
        kernels.accumulate(m, reads + t0*n_read, n_read, row(y, t0) + col0, y_stride, t1 - t0, c0, c1);
    }
}

void llama_deltamem::op_scan(ggml_tensor * dst, int ith, int nth, void * data) {
    const auto & h    = *(const hook *) data;
    auto &       self = *h.self;
    auto &       mem  = self.memory;
    const auto & m    = h.layer->proj.matrix;
    const ggml_tensor * in = dst->src[1];

    const int64_t n_tokens = dst->ne[1];
    if (mem.n_tokens() != n_tokens) {
        return;
    }

    float * p = mem.projections(ith);
    if (n_tokens > N_TOKENS_FEW) {
        memcpy(p, in->data, n_tokens*m.stride*sizeof(float));
    } else {
        memset(p, 0, n_tokens*m.stride*sizeof(float));
        llama_deltamem_kernels_get().accumulate(m, row(in, 0), in->nb[1]/sizeof(float), p, m.stride, n_tokens, 0, m.n_out);
    }
    const float * reads = mem.scan(h.index, ith, ith == 0);

    int64_t col = 0;
    for (const auto head : { DELTAMEM_Q, DELTAMEM_K, DELTAMEM_V }) {
        if (head != DELTAMEM_Q && !h.fused_qkv) {
            break;
        }
        if (self.weights->heads[head]) {
            self.correct(h, head, reads, dst, col, ith, nth);
        }
        col += h.width[head];
    }
}

void llama_deltamem::op_delta(ggml_tensor * dst, int ith, int nth, void * data) {
    const auto & h = *(const hook *) data;
    if (h.self->memory.n_tokens() == dst->ne[1]) {
        h.self->correct(h, h.head, h.self->memory.reads(), dst, 0, ith, nth);
    }
}

void llama_deltamem::op_scan_only(ggml_tensor * dst, int ith, int nth, void * data) {
    GGML_UNUSED(nth);
    if (ith != 0) {
        return;
    }
    const auto & h   = *(const hook *) data;
    auto &       mem = h.self->memory;
    const auto & m   = h.layer->proj.matrix;
    const ggml_tensor * in = dst->src[0];

    if (mem.n_tokens() != dst->ne[1]) {
        memset(dst->data, 0, ggml_nbytes(dst));
        return;
    }
    float * p = mem.projections(0);
    for (int64_t t = 0; t < dst->ne[1]; ++t) {
        memcpy(p + t*m.stride, row(in, t), m.n_out*sizeof(float));
    }
    memcpy(dst->data, mem.scan(h.index, 0, true), ggml_nbytes(dst));
}
