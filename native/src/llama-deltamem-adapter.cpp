#include "llama-deltamem-adapter.h"

#include "llama-deltamem-placement.h"

#include "llama-impl.h"
#include "llama-model.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>

static constexpr int64_t PAD = 32; // block of the kernels

[[noreturn]] static void fail(const std::string & text) {
    throw std::runtime_error(text);
}

size_t llama_deltamem_weights::n_bytes() const {
    size_t n = 0;
    for (const auto & layer : layers) {
        n += layer.proj.n_bytes() + (layer.gate_bias.size() + layer.o_norm.size())*sizeof(float);
        for (const auto & d : layer.delta) {
            n += d.n_bytes();
        }
    }
    return n;
}

namespace {

struct file_closer {
    void operator()(FILE * fp) const { fclose(fp); }
};
using file_ptr = std::unique_ptr<FILE, file_closer>; // a constructor that throws has no destructor

// A GGUF file with the checks that every read needs.
struct reader {
    std::string       file; // name for messages
    gguf_context_ptr  gguf;
    ggml_context_ptr  meta;
    file_ptr          fp;
    uint64_t          size = 0;

    std::set<std::string> keys_read;
    std::set<std::string> tensors_read;

    reader(const char * path) {
        const char * slash = std::max(strrchr(path, '/'), strrchr(path, '\\'));
        file = slash ? slash + 1 : path;

        fp.reset(ggml_fopen(path, "rb"));
        if (!fp) {
            fail(format("%s can't be opened (%s): check the path", file.c_str(), strerror(errno)));
        }
        char magic[4] = {};
        if (fread(magic, 1, 4, fp.get()) != 4 || memcmp(magic, "GGUF", 4) != 0) {
            fail(format("%s is not a GGUF file: make one with dmem adapter convert", file.c_str()));
        }
        fseek(fp.get(), 0, SEEK_END);
        size = (uint64_t) ftell(fp.get());
        fseek(fp.get(), 0, SEEK_SET);

        ggml_context * ctx = nullptr;
        gguf.reset(gguf_init_from_file_ptr(fp.get(), { /*.no_alloc =*/ true, /*.ctx =*/ &ctx }));
        meta.reset(ctx);
        if (!gguf) {
            fail(format("%s is damaged or cut off: its header can't be read; convert or download it again", file.c_str()));
        }
    }

    int64_t key(const std::string & name, gguf_type type, bool required = true) {
        const int64_t id = gguf_find_key(gguf.get(), name.c_str());
        if (id < 0) {
            if (required) {
                fail(format("%s has no %s: it is not a deltamem adapter, or from another version", file.c_str(), name.c_str()));
            }
            return -1;
        }
        if (gguf_get_kv_type(gguf.get(), id) != type) {
            fail(format("%s stores %s as %s, not as %s: convert it again", file.c_str(), name.c_str(),
                    gguf_type_name(gguf_get_kv_type(gguf.get(), id)), gguf_type_name(type)));
        }
        keys_read.insert(name);
        return id;
    }

    std::string str(const std::string & name) { return gguf_get_val_str(gguf.get(), key(name, GGUF_TYPE_STRING)); }
    uint32_t    u32(const std::string & name) { return gguf_get_val_u32(gguf.get(), key(name, GGUF_TYPE_UINT32)); }
    bool    boolean(const std::string & name) { return gguf_get_val_bool(gguf.get(), key(name, GGUF_TYPE_BOOL)); }

    int64_t array(const std::string & name, gguf_type type) {
        const int64_t id = key(name, GGUF_TYPE_ARRAY);
        if (gguf_get_arr_type(gguf.get(), id) != type) {
            fail(format("%s stores %s as a list of %s, not of %s: convert it again", file.c_str(), name.c_str(),
                    gguf_type_name(gguf_get_arr_type(gguf.get(), id)), gguf_type_name(type)));
        }
        return id;
    }

    // values of tensor `name`, which must have the shape [ne1, ne0] in numpy's order
    std::vector<float> tensor(const std::string & name, int64_t ne0, int64_t ne1, ggml_type * type = nullptr) {
        const int64_t id = gguf_find_tensor(gguf.get(), name.c_str());
        if (id < 0) {
            fail(format("%s lacks the tensor %s: convert or train it again", file.c_str(), name.c_str()));
        }
        tensors_read.insert(name);

        const ggml_tensor * t = ggml_get_tensor(meta.get(), name.c_str());
        if (t->ne[0] != ne0 || t->ne[1] != ne1 || t->ne[2] != 1 || t->ne[3] != 1) {
            fail(format("%s: tensor %s is [%lld, %lld], it should be [%lld, %lld]: it does not fit its own settings or this model",
                    file.c_str(), name.c_str(), (long long) t->ne[1], (long long) t->ne[0], (long long) ne1, (long long) ne0));
        }
        if (t->type != GGML_TYPE_F32 && t->type != GGML_TYPE_F16 && t->type != GGML_TYPE_BF16) {
            fail(format("%s: tensor %s is of type %s; only F32, F16 and BF16 are allowed: convert it again",
                    file.c_str(), name.c_str(), ggml_type_name(t->type)));
        }
        const uint64_t offset  = gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), id);
        const uint64_t n_bytes = ggml_nbytes(t);
        if (offset > size || n_bytes > size - offset) {
            fail(format("%s is cut off: tensor %s lies beyond its end; convert or download it again", file.c_str(), name.c_str()));
        }
        std::vector<uint8_t> raw(n_bytes);
        if (fseek(fp.get(), (long) offset, SEEK_SET) != 0 || fread(raw.data(), 1, n_bytes, fp.get()) != n_bytes) {
            fail(format("%s: tensor %s can't be read: check the disk", file.c_str(), name.c_str()));
        }
        const int64_t n = ne0*ne1;
        std::vector<float> values(n);
        switch (t->type) {
            case GGML_TYPE_F16:  ggml_fp16_to_fp32_row((const ggml_fp16_t *) raw.data(), values.data(), n); break;
            case GGML_TYPE_BF16: ggml_bf16_to_fp32_row((const ggml_bf16_t *) raw.data(), values.data(), n); break;
            default:             memcpy(values.data(), raw.data(), n_bytes); break;
        }
        if (!std::all_of(values.begin(), values.end(), [](float f) { return std::isfinite(f); })) {
            fail(format("%s: tensor %s holds NaN or infinite numbers: train or convert it again", file.c_str(), name.c_str()));
        }
        if (type) {
            *type = t->type;
        }
        return values;
    }

    void check_nothing_unknown() const {
        for (int64_t i = 0; i < gguf_get_n_kv(gguf.get()); ++i) {
            const std::string name = gguf_get_key(gguf.get(), i);
            if (name.rfind("general.", 0) != 0 && !keys_read.count(name)) {
                fail(format("%s has the unknown setting %s: it needs a newer version of this program, or is no deltamem adapter", file.c_str(), name.c_str()));
            }
        }
        for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
            const char * name = gguf_get_tensor_name(gguf.get(), i);
            if (!tensors_read.count(name)) {
                fail(format("%s has the unknown tensor %s: it needs a newer version of this program, or is no deltamem adapter", file.c_str(), name));
            }
        }
    }
};

template <typename E>
E choice(reader & in, const std::string & key, std::initializer_list<std::pair<const char *, E>> choices) {
    const std::string value = in.str(key);
    for (const auto & c : choices) {
        if (value == c.first) {
            return c.second;
        }
    }
    fail(format("%s asks for %s = '%s', which this version does not know: update it or use another adapter", in.file.c_str(), key.c_str(), value.c_str()));
}

void read_settings(reader & in, llama_deltamem_weights & w) {
    w.name = in.file;
    if (in.str("general.type") != "adapter" || in.str("adapter.type") != "deltamem") {
        fail(format("%s is not a deltamem adapter: pass one made by dmem adapter convert or train", in.file.c_str()));
    }
    w.arch = in.str("general.architecture");

    const std::string p = "adapter.deltamem.";
    const uint32_t version = in.u32(p + "version");
    if (version != 1) {
        fail(format("%s has format version %u, this program reads version 1: update the program or convert the adapter again", in.file.c_str(), version));
    }
    const uint32_t rank  = in.u32(p + "rank");
    const uint32_t heads = in.u32(p + "state_heads");
    if (rank < 1 || rank > LLAMA_DELTAMEM_MAX_RANK) {
        fail(format("%s has rank %u; ranks from 1 to %d are possible: use another adapter", in.file.c_str(), rank, LLAMA_DELTAMEM_MAX_RANK));
    }
    if (heads < 1 || heads > LLAMA_DELTAMEM_MAX_HEADS) {
        fail(format("%s has %u state heads; 1 to %d are possible: use another adapter", in.file.c_str(), heads, LLAMA_DELTAMEM_MAX_HEADS));
    }
    w.rule.rank           = (int) rank;
    w.rule.n_heads        = (int) heads;
    w.rule.rankwise_gates = in.boolean(p + "rankwise_gates");
    w.rule.couple_lambda  = in.boolean(p + "couple_lambda");
    w.rule.normalize_qk   = in.boolean(p + "normalize_qk");
    w.rule.state_update   = choice<int>(in, p + "state_update", {
        {"standard", LLAMA_DELTAMEM_STANDARD}, {"lambda_outside", LLAMA_DELTAMEM_LAMBDA_OUTSIDE}, {"no_lambda", LLAMA_DELTAMEM_NO_LAMBDA}});
    w.granularity = choice<llama_deltamem_granularity>(in, p + "write_granularity", {
        {"token", LLAMA_DELTAMEM_TOKEN}, {"message_mean", LLAMA_DELTAMEM_MESSAGE_MEAN}, {"sentence_mean", LLAMA_DELTAMEM_SENTENCE_MEAN}});

    const int64_t id_heads = in.array(p + "delta_heads", GGUF_TYPE_STRING);
    for (size_t i = 0; i < gguf_get_arr_n(in.gguf.get(), id_heads); ++i) {
        const std::string name = gguf_get_arr_str(in.gguf.get(), id_heads, i);
        const auto it = std::find(std::begin(DELTAMEM_HEAD_NAMES), std::end(DELTAMEM_HEAD_NAMES), name);
        if (it == std::end(DELTAMEM_HEAD_NAMES) || w.heads[it - DELTAMEM_HEAD_NAMES]) {
            fail(format("%s corrects '%s'; each of q, k, v, o is possible once: convert it again", in.file.c_str(), name.c_str()));
        }
        w.heads[it - DELTAMEM_HEAD_NAMES] = true;
    }

    const int64_t id_eps = in.key(p + "delta_o_norm_eps", GGUF_TYPE_FLOAT32, false);
    if (id_eps >= 0) {
        w.o_norm_eps = gguf_get_val_f32(in.gguf.get(), id_eps);
        if (!(w.o_norm_eps > 0.0f) || !std::isfinite(w.o_norm_eps) || !w.heads[DELTAMEM_O]) {
            fail(format("%s has a delta_o_norm_eps without sense: convert it again", in.file.c_str()));
        }
    }

    w.n_embd  = in.u32(p + "embedding_length");
    w.n_layer = in.u32(p + "block_count");

    const int64_t id_layers = in.array(p + "layers", GGUF_TYPE_UINT32);
    const size_t  n_layers  = gguf_get_arr_n(in.gguf.get(), id_layers);
    const auto *  layers    = (const uint32_t *) gguf_get_arr_data(in.gguf.get(), id_layers);
    if (n_layers == 0) {
        fail(format("%s adapts no layer: convert or train it again", in.file.c_str()));
    }
    for (size_t i = 0; i < n_layers; ++i) {
        if (layers[i] >= w.n_layer || (i > 0 && layers[i] <= layers[i - 1])) {
            fail(format("%s lists layer %u out of order or beyond the %u layers of its model: convert it again", in.file.c_str(), layers[i], w.n_layer));
        }
        w.layers.emplace_back();
        w.layers.back().il = (int32_t) layers[i];
    }

    for (const char * name : { "source", "training" }) { // provenance, for people
        in.key(p + name, GGUF_TYPE_STRING, false);
    }
}

// W [n_out, n_in] as stored -> rows of n_in, padded, in host memory. BF16 stays BF16: it halves what decoding must read.
void set_fused(llama_deltamem_weight & w, const std::vector<float> & values, ggml_type type) {
    auto & m = w.matrix;
    if (type == GGML_TYPE_BF16) {
        w.bf16.assign(m.n_in*m.stride, 0);
    } else {
        w.f32.assign(m.n_in*m.stride, 0.0f);
    }
    for (int64_t o = 0; o < m.n_out; ++o) {
        for (int64_t i = 0; i < m.n_in; ++i) {
            const float f = values[o*m.n_in + i];
            if (type == GGML_TYPE_BF16) {
                w.bf16[i*m.stride + o] = ggml_fp32_to_bf16(f).bits;
            } else {
                w.f32[i*m.stride + o] = f;
            }
        }
    }
    m.bf16 = w.bf16.empty() ? nullptr : w.bf16.data();
    m.f32  = w.f32.empty()  ? nullptr : w.f32.data();
}

void read_layer(reader & in, const llama_model & model, llama_deltamem_weights & w, llama_deltamem_layer & layer, llama_deltamem_tensors & tensors) {
    const auto & rule   = w.rule;
    const auto & base   = model.layers[layer.il];
    const auto   prefix = format("blk.%d.deltamem_", layer.il);
    const bool   fused  = w.compute == LLAMA_DELTAMEM_COMPUTE_FUSED;

    // projections, packed into one matrix so that one product gives all of them
    std::vector<float> proj;
    bool all_bf16 = true;
    const auto append = [&](const char * name, int64_t n_out) {
        ggml_type type;
        const auto values = in.tensor(prefix + name + ".weight", w.n_embd, n_out, &type);
        proj.insert(proj.end(), values.begin(), values.end());
        all_bf16 = all_bf16 && type == GGML_TYPE_BF16;
    };
    const auto append_gate = [&](const char * name) {
        append(name, rule.n_gate());
        const auto bias = in.tensor(prefix + name + ".bias", rule.n_gate(), 1);
        layer.gate_bias.insert(layer.gate_bias.end(), bias.begin(), bias.end());
    };
    append("q", rule.n_read());
    append("k", rule.n_read());
    append("v", rule.n_read());
    append_gate("beta");
    if (rule.has_lambda()) {
        append_gate("lambda");
    }

    const auto set = [&](llama_deltamem_weight & weight, const std::vector<float> & values, int64_t n_in, int64_t n_out, bool bf16, const ggml_tensor * beside) {
        weight.matrix.n_in   = n_in;
        weight.matrix.n_out  = n_out;
        weight.matrix.stride = GGML_PAD(n_out, PAD);
        if (fused) {
            set_fused(weight, values, bf16 ? GGML_TYPE_BF16 : GGML_TYPE_F32);
        } else {
            weight.tensor = tensors.add(w, beside, n_in, n_out, values);
        }
    };

    const ggml_tensor * w_in = base.wqkv ? base.wqkv : base.wq;
    set(layer.proj, proj, w.n_embd, rule.n_proj(), all_bf16, w_in);
    if (!fused) {
        layer.gate_bias_tensor = tensors.add(w, w_in, (int64_t) layer.gate_bias.size(), 1, layer.gate_bias);
    }

    for (int h = 0; h < DELTAMEM_N_HEADS; ++h) {
        if (w.heads[h]) {
            const int64_t width = llama_deltamem_width(model, layer.il, (llama_deltamem_head) h);
            ggml_type type;
            const auto values = in.tensor(prefix + "delta_" + DELTAMEM_HEAD_NAMES[h] + ".weight", rule.n_read(), width, &type);
            set(layer.delta[h], values, rule.n_read(), width, type == GGML_TYPE_BF16, h == DELTAMEM_O ? base.wo : w_in);
        }
    }
    if (w.o_norm_eps > 0.0f) {
        layer.o_norm = in.tensor(prefix + "delta_o_norm.weight", layer.delta[DELTAMEM_O].matrix.n_out, 1);
        if (!fused) {
            layer.o_norm_tensor = tensors.add(w, base.wo, (int64_t) layer.o_norm.size(), 1, layer.o_norm);
        }
    }
}

} // namespace

std::shared_ptr<const llama_deltamem_weights> llama_deltamem_load(const llama_model & model, const char * path, llama_deltamem_compute compute) {
    reader in(path);
    auto w = std::make_shared<llama_deltamem_weights>();
    read_settings(in, *w);

    // before any tensor is read: a wrong model would otherwise show as a wrong shape
    {
        llama_deltamem_weights head;
        head.name = w->name; head.arch = w->arch; head.n_layer = w->n_layer; head.n_embd = w->n_embd;
        llama_deltamem_check_model(head, model);
    }
    for (const auto & layer : w->layers) {
        const auto & base = model.layers[layer.il];
        if (!(base.wqkv || base.wq) || !base.wo) {
            fail(format("layer %d of this model has no attention projections that δ-mem can reach: use an adapter whose layers leave it out", layer.il));
        }
    }

    llama_deltamem_place(*w, model, compute);
    llama_deltamem_tensors tensors(w->layers.size()*(DELTAMEM_N_HEADS + 3));
    for (auto & layer : w->layers) {
        read_layer(in, model, *w, layer, tensors);
    }
    in.check_nothing_unknown();
    tensors.fill(*w);
    llama_deltamem_check_model(*w, model);
    return w;
}
