#include "llama-deltamem-recurrence.h"

#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>

// Gates are kept where λ and 1/λ are numbers; beyond, they are 0 or 1 to the last bit anyway.
static constexpr float GATE_MAX = 30.0f;

static constexpr float L2_EPS = 1e-6f;

llama_deltamem_layout::llama_deltamem_layout(const llama_ubatch & ubatch) :
    n_seqs      (ubatch.equal_seqs() ? ubatch.n_seqs       : ubatch.n_seqs_unq),
    n_seq_tokens(ubatch.equal_seqs() ? ubatch.n_seq_tokens : ubatch.n_tokens),
    mixed       (!ubatch.equal_seqs() && ubatch.n_seqs_unq > 1) {
}

// What a graph is told about each micro-batch. llama.cpp asks for it before every computation, also of a graph that it
// uses again; the tensors' sizes depend only on what such a graph must have in common with the first one.
struct llama_deltamem_inputs : public llm_graph_input_i {
    llama_deltamem_inputs(llama_deltamem_recurrence & self, const llama_ubatch & ubatch) : self(self), layout(ubatch) {}

    void set_input(const llama_ubatch * ubatch) override;

    bool can_reuse(const llm_graph_params & params) override { return layout == llama_deltamem_layout(params.ubatch); }

    llama_deltamem_recurrence & self;
    const llama_deltamem_layout layout;

    ggml_tensor * now     = nullptr; // I32 [n_seqs]: rows to read
    ggml_tensor * next    = nullptr; // I64 [n_seqs]: rows to write
    ggml_tensor * mask    = nullptr; // F32 [1, n_seqs*n_seq_tokens]: 0 writes, -inf does not
    ggml_tensor * gather  = nullptr; // I32 [n_seqs*n_seq_tokens]: where tokens come from, when they are mixed
    ggml_tensor * scatter = nullptr; // I32 [n_tokens]: and where their reads are

    std::vector<ggml_tensor *> projections; // per adapted layer; only when spans may need them
};

void llama_deltamem_inputs::set_input(const llama_ubatch * ubatch) {
    const auto & memory   = self.memory;
    const auto & slot     = memory.slots();
    const int64_t n_tokens = ubatch->n_tokens;

    self.running = this;

    std::vector<int32_t> now_data(layout.n_seqs);
    std::vector<int64_t> next_data(layout.n_seqs);
    for (int64_t s = 0; s < layout.n_seqs; ++s) {
        now_data [s] = (int32_t) memory.row_now(s);
        next_data[s] = memory.row_next(s);
    }
    std::vector<float>   mask_data(layout.n_seqs*layout.n_seq_tokens, -INFINITY);
    std::vector<int32_t> gather_data(mask_data.size(), (int32_t) n_tokens), scatter_data(n_tokens);
    std::vector<int64_t> n_of(layout.n_seqs, 0);
    for (int64_t i = 0; i < n_tokens; ++i) {
        const int64_t at = slot[i]*layout.n_seq_tokens + n_of[slot[i]]++;
        gather_data[at] = (int32_t) i;
        scatter_data[i] = (int32_t) at;
        if (memory.writes(i)) {
            mask_data[at] = 0.0f;
        }
    }
    ggml_backend_tensor_set(now,  now_data.data(),  0, ggml_nbytes(now));
    ggml_backend_tensor_set(next, next_data.data(), 0, ggml_nbytes(next));
    ggml_backend_tensor_set(mask, mask_data.data(), 0, ggml_nbytes(mask));
    if (layout.mixed) {
        ggml_backend_tensor_set(gather,  gather_data.data(),  0, ggml_nbytes(gather));
        ggml_backend_tensor_set(scatter, scatter_data.data(), 0, ggml_nbytes(scatter));
    }
}

llama_deltamem_inputs & llama_deltamem_recurrence::inputs_of(const llm_graph_context & graph) const {
    for (const auto & input : graph.res->inputs) {
        if (auto * found = dynamic_cast<llama_deltamem_inputs *>(input.get())) {
            return *found;
        }
    }
    auto made = std::make_unique<llama_deltamem_inputs>(const_cast<llama_deltamem_recurrence &>(*this), graph.ubatch);
    const auto add = [&](ggml_type type, int64_t ne0, int64_t ne1) {
        ggml_tensor * t = ggml_new_tensor_2d(graph.ctx0, type, ne0, ne1);
        ggml_set_input(t);
        return t;
    };
    const auto & layout = made->layout;
    made->now  = add(GGML_TYPE_I32, layout.n_seqs, 1);
    made->next = add(GGML_TYPE_I64, layout.n_seqs, 1);
    made->mask = add(GGML_TYPE_F32, 1, layout.n_seqs*layout.n_seq_tokens);
    if (layout.mixed) {
        made->gather  = add(GGML_TYPE_I32, layout.n_seqs*layout.n_seq_tokens, 1);
        made->scatter = add(GGML_TYPE_I32, graph.ubatch.n_tokens, 1);
    }
    made->projections.resize(w.layers.size(), nullptr);
    return static_cast<llama_deltamem_inputs &>(*graph.res->add_input(std::move(made)));
}

void llama_deltamem_recurrence::begin(const llama_ubatch & ubatch) {
    const llama_deltamem_layout layout(ubatch);
    const auto & slot = memory.slots();

    running = nullptr;

    bool fits = std::all_of(slot.begin(), slot.end(), [&](int32_t s) { return s < layout.n_seqs; });
    for (int64_t i = 0; fits && !layout.mixed && i < (int64_t) slot.size(); ++i) {
        fits = slot[i] == i/layout.n_seq_tokens;
    }
    if (!fits) {
        throw std::runtime_error("the tokens of these sequences are mixed in a way that can't be computed on their device: decode one sequence at a time");
    }
}

void llama_deltamem_recurrence::keep_spans() {
    std::vector<float> p;
    for (size_t i = 0; running && i < running->projections.size(); ++i) {
        const ggml_tensor * t = running->projections[i];
        p.resize(ggml_nelements(t));
        ggml_backend_tensor_get(t, p.data(), 0, ggml_nbytes(t));
        memory.add_to_spans((int) i, p.data(), t->ne[0]);
    }
}

ggml_tensor * llama_deltamem_recurrence::build(const llm_graph_context & graph, int index, ggml_tensor * p) {
    ggml_context * ctx   = graph.ctx0;
    const auto &   rule  = w.rule;
    const auto &   layer = w.layers[index];
    auto &         in    = inputs_of(graph);

    const int64_t r = rule.rank, H = rule.n_heads, R = rule.n_read();
    const int64_t n = rule.n_gate();   // heads of ggml's operator: as many as there are gates
    const int64_t l = R/n;             // lanes of a head: rows that share a gate
    const int64_t B = in.layout.n_seqs, T = in.layout.n_seq_tokens, N = B*T;
    const size_t  f = sizeof(float);

    if (w.granularity != LLAMA_DELTAMEM_TOKEN) {
        ggml_set_output(p); // the host needs it after the computation
        ggml_build_forward_expand(graph.gf, p);
        in.projections[index] = p;
    }
    if (in.layout.mixed) {
        p = ggml_get_rows(ctx, ggml_pad(ctx, p, 0, 1, 0, 0), in.gather);
    }

    // q | k: [r, 2H, N], contiguous
    ggml_tensor * qk = rule.normalize_qk ? ggml_tanh(ctx, p) : p;
    qk = ggml_view_3d(ctx, qk, r, 2*H, N, r*f, qk->nb[1], 0);
    qk = rule.normalize_qk ? ggml_l2_norm(ctx, qk, L2_EPS) : ggml_cont(ctx, qk);

    // β, λ: [n, N]
    ggml_tensor * gates = ggml_add(ctx, ggml_view_2d(ctx, p, rule.n_gates(), N, p->nb[1], 3*R*f), layer.gate_bias_tensor);
    ggml_tensor * x      = ggml_add(ctx, ggml_view_2d(ctx, gates, n, N, gates->nb[1], 0), in.mask);
    ggml_tensor * beta   = ggml_sigmoid(ctx, x);
    ggml_tensor * lambda = nullptr; // null: 1
    if (rule.has_lambda()) {
        ggml_tensor * y = ggml_sub(ctx, ggml_view_2d(ctx, gates, n, N, gates->nb[1], n*f), in.mask);
        lambda = ggml_sigmoid(ctx, ggml_clamp(ctx, y, -GATE_MAX, INFINITY));
    } else if (rule.state_update != LLAMA_DELTAMEM_NO_LAMBDA) {
        x      = ggml_clamp(ctx, x, -INFINITY, GATE_MAX);
        lambda = ggml_sigmoid(ctx, ggml_neg(ctx, x)); // 1 - β without its loss of digits
    }

    ggml_tensor * rows  = memory.device_rows()->view(ctx, index);
    ggml_tensor * state = ggml_get_rows(ctx, rows, in.now); // [n_state, B]

    // what the first token of a sequence reads
    ggml_tensor * S  = ggml_reshape_4d(ctx, state, r, r, H, B);
    ggml_tensor * q0 = ggml_view_4d(ctx, qk, r, 1, H, B, r*f, r*f, T*qk->nb[2], 0);
    q0 = ggml_is_contiguous(q0) ? q0 : ggml_cont(ctx, q0);
    ggml_tensor * reads = ggml_mul_mat(ctx, S, q0); // [r, 1, H, B]

    ggml_tensor * written = nullptr; // [n_state, B]
    if (T == 1) {
        ggml_tensor * k = ggml_view_4d(ctx, qk, r, 1, H, B, r*f, r*f, qk->nb[2], R*f);
        k = ggml_is_contiguous(k) ? k : ggml_cont(ctx, k);
        beta = ggml_reshape_3d(ctx, beta, 1, n, B);
        ggml_tensor * erased = ggml_reshape_3d(ctx, ggml_mul_mat(ctx, S, k), l, n, B); // S k
        if (lambda) {
            lambda = ggml_reshape_3d(ctx, lambda, 1, n, B);
            if (rule.state_update == LLAMA_DELTAMEM_LAMBDA_OUTSIDE) {
                erased = ggml_mul(ctx, erased, lambda);
            }
        }
        ggml_tensor * v     = ggml_view_3d(ctx, p, l, n, B, l*f, p->nb[1], 2*R*f);
        ggml_tensor * delta = ggml_mul(ctx, ggml_sub(ctx, v, erased), beta);
        ggml_tensor * kept  = ggml_reshape_3d(ctx, state, r*l, n, B);
        kept    = lambda ? ggml_mul(ctx, kept, lambda) : kept;
        written = ggml_mul(ctx, ggml_repeat_4d(ctx, k, r, r, H, B), ggml_reshape_4d(ctx, delta, 1, r, H, B));
        written = ggml_add(ctx, ggml_reshape_2d(ctx, kept, rule.n_state(), B), ggml_reshape_2d(ctx, written, rule.n_state(), B));
        reads   = ggml_reshape_2d(ctx, reads, R, B);
    } else {
        const int64_t P = w.head_size;

        ggml_tensor * v = ggml_view_3d(ctx, p, l, n, N, l*f, p->nb[1], 2*R*f);
        ggml_tensor * g = lambda ? ggml_log(ctx, lambda) : ggml_scale(ctx, beta, 0.0f);
        if (rule.state_update == LLAMA_DELTAMEM_STANDARD) {
            beta = ggml_div(ctx, beta, lambda);
            v    = ggml_mul(ctx, v, ggml_reshape_3d(ctx, lambda, 1, n, N));
        }
        v    = ggml_reshape_4d(ctx, l < P ? ggml_pad(ctx, v, P - l, 0, 0, 0) : ggml_cont(ctx, v), P, n, T, B);
        g    = ggml_reshape_4d(ctx, g,    1, n, T, B);
        beta = ggml_reshape_4d(ctx, beta, 1, n, T, B);

        // one token more, so that each can take the q of the next one
        ggml_tensor * heads = ggml_pad(ctx, ggml_reshape_4d(ctx, qk, r, 2*H, T, B), P - r, 0, 1, 0); // [P, 2H, T + 1, B]
        int64_t n_qk = H;
        if (H > 1 && n > H) { // rows of several heads: each its own copy
            heads = ggml_repeat_4d(ctx, ggml_reshape_4d(ctx, heads, P, 1, 2*H, (T + 1)*B), P, r, 2*H, (T + 1)*B);
            heads = ggml_reshape_4d(ctx, heads, P, 2*R, T + 1, B);
            n_qk  = R;
        }
        ggml_tensor * q = ggml_view_4d(ctx, heads, P, n_qk, T, B, heads->nb[1], heads->nb[2], heads->nb[3], heads->nb[2]);
        ggml_tensor * k = ggml_view_4d(ctx, heads, P, n_qk, T, B, heads->nb[1], heads->nb[2], heads->nb[3], n_qk*heads->nb[1]);

        ggml_tensor * s = ggml_reshape_4d(ctx, state, r, l, n, B);
        s = l < P ? ggml_pad(ctx, s, P - r, P - l, 0, 0) : s;

        ggml_tensor * out = ggml_gated_delta_net(ctx, q, k, v, g, beta, s, 1); // [P*n, N + P*B]: outputs, then states
        const float scale = std::sqrt((float) P);

        ggml_tensor * later = ggml_view_4d(ctx, out, l, n, T - 1, B, P*f, P*n*f, P*n*T*f, 0);
        reads = ggml_reshape_4d(ctx, ggml_scale(ctx, reads, 1.0f/scale), l, n, 1, B);
        reads = ggml_reshape_2d(ctx, ggml_scale(ctx, ggml_concat(ctx, reads, later, 2), scale), R, N);

        written = ggml_view_4d(ctx, out, r, l, n, B, P*f, P*P*f, P*P*n*f, P*n*N*f);
        written = ggml_reshape_2d(ctx, ggml_cont(ctx, written), rule.n_state(), B);
    }
    ggml_build_forward_expand(graph.gf, ggml_set_rows(ctx, rows, written, in.next));

    return in.layout.mixed ? ggml_get_rows(ctx, reads, in.scatter) : reads;
}

int llama_deltamem_head_size(const llama_deltamem_rule & rule, const std::vector<ggml_backend_dev_t> & devices) {
    for (const int64_t P : { 16, 32, 64, 128 }) { // what CUDA has, though it claims to support all sizes
        if (P < rule.rank) {
            continue;
        }
        ggml_context_ptr ctx { ggml_init({ 16*ggml_tensor_overhead(), nullptr, true }) };
        const int64_t n = rule.n_gate(), T = 2;
        const auto tensor = [&](int64_t ne0, int64_t ne1, int64_t ne2) { return ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, ne0, ne1, ne2, 1); };
        ggml_tensor * op = ggml_gated_delta_net(ctx.get(), tensor(P, n, T), tensor(P, n, T), tensor(P, n, T), tensor(1, n, T), tensor(1, n, T), tensor(P, P, n), 1);
        bool all = true;
        for (ggml_backend_dev_t dev : devices) {
            all = all && ggml_backend_dev_supports_op(dev, op);
        }
        if (all) {
            return (int) P;
        }
    }
    return 0;
}
