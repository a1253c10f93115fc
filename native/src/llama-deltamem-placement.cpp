#include "llama-deltamem-placement.h"

#include "llama-deltamem-recurrence.h"

#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <set>
#include <stdexcept>

int64_t llama_deltamem_width(const llama_model & model, int32_t il, llama_deltamem_head head) {
    const auto & layer = model.layers[il];
    const auto & hp    = model.hparams;
    switch (head) {
        case DELTAMEM_Q: return layer.wqkv ? (int64_t) hp.n_embd_head_k(il)*hp.n_head(il) : layer.wq ? layer.wq->ne[1] : 0;
        case DELTAMEM_K: return layer.wqkv ? (int64_t) hp.n_embd_k_gqa(il)                : layer.wk ? layer.wk->ne[1] : 0;
        case DELTAMEM_V: return layer.wqkv ? (int64_t) hp.n_embd_v_gqa(il)                : layer.wv ? layer.wv->ne[1] : 0;
        case DELTAMEM_O: return layer.wo ? layer.wo->ne[1] : 0;
        default:         return 0;
    }
}

void llama_deltamem_check_model(const llama_deltamem_weights & w, const llama_model & model) {
    const char * file = w.name.c_str();
    if (w.arch != model.arch_name()) {
        throw std::runtime_error(format("%s is a deltamem adapter for %s, this model is %s: use the adapter that was made for this model",
                file, w.arch.c_str(), model.arch_name().c_str()));
    }
    if (w.n_layer != model.hparams.n_layer()) {
        throw std::runtime_error(format("%s is for a model of %u layers, this one has %u: use the adapter that was made for this model",
                file, w.n_layer, model.hparams.n_layer()));
    }
    if (w.n_embd != model.hparams.n_embd) {
        throw std::runtime_error(format("%s is for a model of width %u, this one has %u: use the adapter that was made for this model",
                file, w.n_embd, model.hparams.n_embd));
    }
    std::set<const ggml_tensor *> seen;
    for (const auto & layer : w.layers) {
        const auto & base = model.layers[layer.il];
        const ggml_tensor * in = base.wqkv ? base.wqkv : base.wq;
        if (!in || !base.wo) {
            throw std::runtime_error(format("layer %d of this model has no attention projections that δ-mem can reach: use an adapter whose layers leave it out", layer.il));
        }
        if (in->ne[0] != (int64_t) w.n_embd) {
            throw std::runtime_error(format("the attention of layer %d takes %lld numbers, %s gives %u: use the adapter that was made for this model",
                    layer.il, (long long) in->ne[0], file, w.n_embd));
        }
        if (base.wqkv && base.wqkv->ne[1] != llama_deltamem_width(model, layer.il, DELTAMEM_Q) +
                llama_deltamem_width(model, layer.il, DELTAMEM_K) + llama_deltamem_width(model, layer.il, DELTAMEM_V)) {
            throw std::runtime_error(format("the fused qkv projection of layer %d is laid out in a way that δ-mem does not know: use another model", layer.il));
        }
        for (const ggml_tensor * t : { in, (const ggml_tensor *) base.wo }) {
            if (!seen.insert(t).second) {
                throw std::runtime_error(format("layer %d of this model shares its weights with another layer, which δ-mem can't tell apart: use another model", layer.il));
            }
        }
        for (int h = 0; h < DELTAMEM_N_HEADS; ++h) {
            const int64_t width = llama_deltamem_width(model, layer.il, (llama_deltamem_head) h);
            if (w.heads[h] && layer.delta[h].matrix.n_out != width) {
                throw std::runtime_error(format("%s corrects %lld numbers of %s in layer %d, this model has %lld: use the adapter that was made for this model",
                        file, (long long) layer.delta[h].matrix.n_out, DELTAMEM_HEAD_NAMES[h], layer.il, (long long) width));
            }
        }
    }
}

static ggml_backend_dev_t device_of(ggml_backend_buffer_type_t buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    return dev ? dev : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

// where the model keeps `t`, or plain CPU memory when that is a buffer for repacked weights
static ggml_backend_buffer_type_t buft_beside(const ggml_tensor * t) {
    ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(t->buffer);
    ggml_backend_dev_t dev = device_of(buft);
    return ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU ? ggml_backend_dev_buffer_type(dev) : buft;
}

void llama_deltamem_place(llama_deltamem_weights & w, const llama_model & model, llama_deltamem_compute asked) {
    std::vector<ggml_backend_dev_t> devices; // where the scan would be
    for (const auto & layer : w.layers) {
        const auto & base = model.layers[layer.il];
        const auto dev = device_of(buft_beside(base.wqkv ? base.wqkv : base.wq));
        if (std::find(devices.begin(), devices.end(), dev) == devices.end()) {
            devices.push_back(dev);
        }
    }
    w.head_size = llama_deltamem_head_size(w.rule, devices);

    // The kernels work in place on what llama.cpp computes. Where there is another device, it may lend even layers of the
    // CPU to it (many tokens at once), so they are for models that have none.
    const bool only_cpu = model.devices.empty();

    w.compute = asked;
    if (asked == LLAMA_DELTAMEM_COMPUTE_AUTO) {
        w.compute = only_cpu ? LLAMA_DELTAMEM_COMPUTE_FUSED : w.head_size > 0 ? LLAMA_DELTAMEM_COMPUTE_GRAPH : LLAMA_DELTAMEM_COMPUTE_OPS;
    }
    if (w.compute == LLAMA_DELTAMEM_COMPUTE_FUSED && !only_cpu) {
        throw std::runtime_error(format("the fused kernels run on the local CPU alone, but this model also uses %s: let the way to compute be chosen (auto)",
                ggml_backend_dev_name(model.devices.front().dev)));
    }
    if (w.compute == LLAMA_DELTAMEM_COMPUTE_GRAPH && w.head_size == 0) {
        throw std::runtime_error(format("%s has no operator for the recurrence of rank %d: let the way to compute be chosen (auto)",
                ggml_backend_dev_name(devices.front()), w.rule.rank));
    }
}

ggml_tensor * llama_deltamem_tensors::add(llama_deltamem_weights & w, const ggml_tensor * beside, int64_t ne0, int64_t ne1, std::vector<float> values) {
    auto & ctx = ctxs[buft_beside(beside)];
    if (!ctx) {
        ctx = ggml_init({ n_max*ggml_tensor_overhead(), nullptr, true });
        w.ctxs.emplace_back(ctx);
    }
    ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ne0, ne1);
    pending.push_back({ t, std::move(values) });
    return t;
}

void llama_deltamem_tensors::fill(llama_deltamem_weights & w) {
    for (const auto & it : ctxs) {
        ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors_from_buft(it.second, it.first) };
        if (!buf) {
            throw std::runtime_error(format("%s does not fit into the memory of %s: use fewer GPU layers", w.name.c_str(), ggml_backend_buft_name(it.first)));
        }
        w.bufs.emplace_back(std::move(buf));
    }
    for (const auto & p : pending) {
        ggml_backend_tensor_set(p.tensor, p.values.data(), 0, p.values.size()*sizeof(float));
    }
}
