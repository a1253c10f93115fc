// The C interface: checks its arguments, turns exceptions into the last error.

#include "llama-deltamem.h"

#include "llama-deltamem-adapter.h"
#include "llama-deltamem-graph.h"
#include "llama-deltamem-placement.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <stdexcept>
#include <string>
#include <vector>

static std::string & last_error() {
    static thread_local std::string text;
    return text;
}

void llama_deltamem_set_error(const char * text) noexcept {
    try {
        last_error() = text;
        if (*text) {
            LLAMA_LOG_ERROR("deltamem: %s\n", text);
        }
    } catch (...) {
        last_error().clear(); // no memory for the text: the failure itself is still reported
    }
}

template <typename T, typename F>
static T guarded(T failed, F && f) {
    llama_deltamem_set_error("");
    return llama_deltamem_guarded(failed, f);
}

static void need(bool ok, const char * text) {
    if (!ok) {
        throw std::runtime_error(text);
    }
}

static llama_deltamem & attached(const llama_context * ctx) {
    need(ctx, "no context was given");
    const auto & dm = ctx->get_cparams().deltamem;
    need(dm != nullptr, "this context has no deltamem adapter: attach one first");
    return *dm;
}

static uint32_t n_seqs(const llama_context & ctx) {
    const auto & cparams = ctx.get_cparams();
    return cparams.kv_unified ? LLAMA_MAX_SEQ : cparams.n_seq_max;
}

// for what touches states, which a device may still be computing
static llama_deltamem & settled(const llama_context * ctx) {
    llama_deltamem & dm = attached(ctx);
    if (dm.memory.device_rows()) {
        const_cast<llama_context *>(ctx)->synchronize();
    }
    return dm;
}

static llama_deltamem & attached(const llama_context * ctx, llama_seq_id seq) {
    attached(ctx);
    if (seq < 0 || (uint32_t) seq >= n_seqs(*ctx)) {
        throw std::runtime_error(format("sequence %d does not exist; this context has 0 to %u", seq, n_seqs(*ctx) - 1));
    }
    return settled(ctx);
}

static void check_size(const llama_deltamem & dm, const void * state, size_t n) {
    need(state, "no memory for the state was given");
    if (n != dm.memory.n_floats()) {
        throw std::runtime_error(format("a state of %zu numbers does not fit; %s needs %zu: it belongs to another model or adapter",
                n, dm.weights->name.c_str(), dm.memory.n_floats()));
    }
}

int32_t llama_deltamem_api_version(void) {
    return LLAMA_DELTAMEM_API_VERSION;
}

const char * llama_deltamem_last_error(void) {
    return last_error().c_str();
}

llama_deltamem_adapter * llama_deltamem_adapter_init(const llama_model * model, const char * path, int32_t compute) {
    return guarded<llama_deltamem_adapter *>(nullptr, [&] {
        need(model && path, "a model and a path are needed to load an adapter");
        if (compute < LLAMA_DELTAMEM_COMPUTE_AUTO || compute > LLAMA_DELTAMEM_COMPUTE_GRAPH) {
            throw std::runtime_error(format("there is no way %d to compute corrections: pass one of enum llama_deltamem_compute", compute));
        }
        return new llama_deltamem_adapter { llama_deltamem_load(*model, path, (llama_deltamem_compute) compute) };
    });
}

void llama_deltamem_adapter_free(llama_deltamem_adapter * adapter) {
    delete adapter;
}

int32_t llama_deltamem_adapter_info(const llama_deltamem_adapter * adapter, llama_deltamem_info * info) {
    return guarded<int32_t>(-1, [&] {
        need(adapter && info, "no adapter was given");
        const auto & w = *adapter->weights;
        *info = { (uint32_t) w.layers.size(), (uint32_t) w.rule.n_heads, (uint32_t) w.rule.rank, (uint32_t) w.granularity, (uint32_t) w.compute, w.n_bytes() };
        return 0;
    });
}

int32_t llama_deltamem_adapter_layers(const llama_deltamem_adapter * adapter, int32_t * layers, size_t n) {
    return guarded<int32_t>(-1, [&] {
        need(adapter && layers, "no adapter was given");
        need(n == adapter->weights->layers.size(), "the number of layers does not fit this adapter: ask llama_deltamem_adapter_info");
        for (size_t i = 0; i < n; ++i) {
            layers[i] = adapter->weights->layers[i].il;
        }
        return 0;
    });
}

int32_t llama_deltamem_attach(llama_context * ctx, const llama_deltamem_adapter * adapter) {
    return guarded<int32_t>(-1, [&] {
        need(ctx && adapter, "a context and an adapter are needed to attach");
        const auto & current = ctx->get_cparams().deltamem;
        if (current) {
            throw std::runtime_error(format("this context already has the adapter %s: detach it first", current->weights->name.c_str()));
        }
        const llama_model & model = ctx->get_model();
        llama_deltamem_check_model(*adapter->weights, model);
        ctx->set_deltamem(std::make_shared<llama_deltamem>(adapter->weights, model, n_seqs(*ctx)));
        return 0;
    });
}

int32_t llama_deltamem_detach(llama_context * ctx) {
    return guarded<int32_t>(-1, [&] {
        attached(ctx);
        ctx->set_deltamem(nullptr);
        return 0;
    });
}

int32_t llama_deltamem_n_splits(const llama_context * ctx) {
    return guarded<int32_t>(-1, [&] {
        need(ctx, "no context was given");
        return (int32_t) ggml_backend_sched_get_n_splits(ctx->get_sched());
    });
}

size_t llama_deltamem_state_n_floats(const llama_context * ctx) {
    return guarded<size_t>(0, [&] { return attached(ctx).memory.n_floats(); });
}

size_t llama_deltamem_state_n_bytes(const llama_context * ctx) {
    return guarded<size_t>(0, [&] { return attached(ctx).memory.n_bytes(); });
}

int32_t llama_deltamem_state_get(const llama_context * ctx, llama_seq_id seq, float * state, size_t n) {
    return guarded<int32_t>(-1, [&] {
        const llama_deltamem & dm = attached(ctx, seq);
        check_size(dm, state, n);
        dm.memory.get(seq, state);
        return 0;
    });
}

int32_t llama_deltamem_state_set(llama_context * ctx, llama_seq_id seq, const float * state, size_t n) {
    return guarded<int32_t>(-1, [&] {
        llama_deltamem & dm = attached(ctx, seq);
        check_size(dm, state, n);
        dm.memory.set(seq, state);
        return 0;
    });
}

int32_t llama_deltamem_state_clear(llama_context * ctx, llama_seq_id seq) {
    return guarded<int32_t>(-1, [&] {
        (seq < 0 ? settled(ctx) : attached(ctx, seq)).memory.clear(seq);
        return 0;
    });
}

int32_t llama_deltamem_state_copy(llama_context * ctx, llama_seq_id src, llama_seq_id dst) {
    return guarded<int32_t>(-1, [&] {
        attached(ctx, src);
        attached(ctx, src);
        attached(ctx, dst).memory.copy(src, dst);
        return 0;
    });
}

int32_t llama_deltamem_set_write(llama_context * ctx, bool write) {
    return guarded<int32_t>(-1, [&] {
        attached(ctx).memory.set_write(write);
        return 0;
    });
}

int32_t llama_deltamem_set_spans(llama_context * ctx, const int32_t * spans, size_t n_tokens) {
    return guarded<int32_t>(-1, [&] {
        llama_deltamem & dm = attached(ctx);
        need(spans && n_tokens > 0, "no span ids were given");
        dm.memory.set_spans(spans, n_tokens);
        return 0;
    });
}

int32_t llama_deltamem_pass_begin(llama_context * ctx, llama_seq_id seq) {
    return guarded<int32_t>(-1, [&] {
        attached(ctx, seq).memory.pass_begin(seq);
        return 0;
    });
}

int32_t llama_deltamem_pass_drop(llama_context * ctx, llama_seq_id seq) {
    return guarded<int32_t>(-1, [&] {
        attached(ctx, seq).memory.pass_drop(seq);
        return 0;
    });
}

int32_t llama_deltamem_pass_end(llama_context * ctx, llama_seq_id seq) {
    return guarded<int32_t>(-1, [&] {
        attached(ctx, seq).memory.pass_end(seq);
        return 0;
    });
}

bool llama_deltamem_abort_if_set(void * data) {
    return data && *static_cast<volatile bool *>(data);
}

// ggml's CPU backend may be a library of its own that is loaded at run time, so its functions are asked for
template <typename F>
static F cpu_function(const char * name) {
    ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    F f = dev ? (F) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), name) : nullptr;
    need(f != nullptr, "ggml's CPU backend is missing: install the package again");
    return f;
}

ggml_threadpool * llama_deltamem_threadpool_init(int32_t n_threads) {
    return guarded<ggml_threadpool *>(nullptr, [&] {
        need(n_threads >= 1 && n_threads <= GGML_MAX_N_THREADS, "the number of threads must be 1 to 512");
        ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
        params.poll = 1;
        ggml_threadpool * pool = cpu_function<decltype(ggml_threadpool_new) *>("ggml_threadpool_new")(&params);
        need(pool != nullptr, "the threads could not be made: use fewer");
        return pool;
    });
}

void llama_deltamem_threadpool_free(ggml_threadpool * threadpool) {
    guarded<int>(0, [&] {
        if (threadpool) {
            cpu_function<decltype(ggml_threadpool_free) *>("ggml_threadpool_free")(threadpool);
        }
        return 0;
    });
}

int32_t llama_deltamem_scan(
        const llama_deltamem_scan_params * params, float * p, const float * gate_bias, const uint8_t * write,
        size_t n_tokens, float * state, float * reads) {
    return guarded<int32_t>(-1, [&] {
        need(params && p && gate_bias && state && reads, "an argument of the scan is missing");
        need(params->rank >= 1 && params->rank <= LLAMA_DELTAMEM_MAX_RANK, "the rank must be 1 to 64");
        need(params->n_heads >= 1 && params->n_heads <= LLAMA_DELTAMEM_MAX_HEADS, "the state heads must be 1 to 64");
        need(params->state_update <= LLAMA_DELTAMEM_NO_LAMBDA, "this way to update the state is not known");

        llama_deltamem_rule rule;
        rule.rank           = (int) params->rank;
        rule.n_heads        = (int) params->n_heads;
        rule.state_update   = (int) params->state_update;
        rule.rankwise_gates = params->rankwise_gates;
        rule.couple_lambda  = params->couple_lambda;
        rule.normalize_qk   = params->normalize_qk;

        const auto & kernels = llama_deltamem_kernels_get();
        const std::vector<int32_t> slot(n_tokens, 0);
        const std::vector<uint8_t> all(n_tokens, 1);
        std::vector<float> tmp(rule.rank*rule.rank + 4*rule.rank);
        kernels.activate(rule, gate_bias, p, rule.n_proj(), (int64_t) n_tokens);
        kernels.scan(rule, p, rule.n_proj(), slot.data(), write ? write : all.data(), (int64_t) n_tokens, state, reads, tmp.data());
        return 0;
    });
}
