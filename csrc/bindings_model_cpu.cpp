// Ops of the native model: handles to models whose weights are torch tensors, and the step.
#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <memory>
#include <mutex>

#include "bindings_cpu.h"
#include "choosing_arguments.h"
#include "cpu/passage.h"

namespace exl2 {

namespace {

struct Entry {
  std::vector<Tensor> tensors;  // keep the memory alive that the model points to
  std::unique_ptr<Model> model;
  std::mutex mutex;  // one step at a time
};

// Never destroyed: another thread may still run a step while the process exits.
struct Registry {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<Entry>> entries;
  int64_t next = 1;
};

Registry& registry() {
  static Registry* instance = new Registry;
  return *instance;
}

std::shared_ptr<Entry> entry_of(int64_t handle) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  const auto found = registry().entries.find(handle);
  STD_TORCH_CHECK(found != registry().entries.end(), "no model has the handle ", handle);
  return found->second;
}

constexpr int64_t kTensorsPerLayer = 11;

struct CacheTensors {
  const Tensor &k, &v, &k_scale, &v_scale;
};

// What steps over the next `count` tokens from `position` on have in common.
StepRequest step_request(const Model& model, int64_t position, int64_t count, const CacheTensors& t, const Tensor& cos,
                         const Tensor& sin, int64_t cancel) {
  const ModelWeights& w = model.weights();
  StepRequest request{};
  request.position = position;
  request.cache = cache_memory(t.k, t.v, t.k_scale, t.v_scale, static_cast<int64_t>(w.layers.size()), w.G, w.D);
  const int64_t end = position + count;
  STD_TORCH_CHECK(count >= 1, "ids: there are none");
  STD_TORCH_CHECK(position >= 0 && end <= request.cache.capacity, "the cache is too small");
  request.cos = data_of<const float>(cos, ScalarType::Float, end * w.rope_half, "cos");
  request.sin = data_of<const float>(sin, ScalarType::Float, end * w.rope_half, "sin");
  request.cancel = reinterpret_cast<const volatile uint8_t*>(cancel);
  return request;
}

}  // namespace

// sizes: C, F, V, H, G, D, rope_half. embedding (V, C) with an empty place; or empty, where only its dtype counts, and
// place as TablePlace has it, of whose descriptor the model takes a copy. shared: final norm (C), packed head.
// layers, 11 tensors each: attn norm (C), packed q, k, v, o, q norm (H, D) or empty, k norm (G, D) or empty,
// mlp norm (C), packed gate, up, down. Norms are float32. windows: one per layer, 0 for none.
// Returns a handle, or -errno if the descriptor cannot be copied.
int64_t model_create(std::vector<int64_t> sizes, double eps, const Tensor& embedding, std::vector<int64_t> place,
                     std::vector<Tensor> shared, std::vector<Tensor> layers, std::vector<int64_t> windows, int64_t isa,
                     int64_t chunk, int64_t threads) {
  STD_TORCH_CHECK(sizes.size() == 7 && shared.size() == 2, "model_create: wrong number of arguments");
  STD_TORCH_CHECK(layers.size() == windows.size() * kTensorsPerLayer, "model_create: wrong number of layer tensors");
  ModelWeights w;
  w.C = sizes[0];
  w.F = sizes[1];
  w.V = sizes[2];
  w.H = sizes[3];
  w.G = sizes[4];
  w.D = sizes[5];
  w.rope_half = sizes[6];
  for (const int64_t size : {w.C, w.F, w.V, w.H, w.G, w.D, chunk, threads}) STD_TORCH_CHECK(size >= 1, "bad size");
  STD_TORCH_CHECK(w.H % w.G == 0 && w.D <= kMaxHeadDim && 2 * w.rope_half <= w.D, "model_create: bad heads");
  w.eps = static_cast<float>(eps);
  const LinearKernels* linears = linear_kernels_of(checked_isa(isa));
  const auto norm = [](const Tensor& t, int64_t n) { return data_of<const float>(t, ScalarType::Float, n, "norm"); };
  const auto packed = [&](const Tensor& t, int64_t out_features) {
    const uint8_t* blob = data_of<const uint8_t>(t, ScalarType::Byte, 64, "packed linear");
    const int64_t tiles = (out_features + kLinearTileColumns - 1) / kLinearTileColumns;
    STD_TORCH_CHECK(linears->tiles(blob) == tiles, "packed linear: does not have ", out_features, " outputs");
    return blob;
  };
  if (place.empty()) {
    const void* table = data_of<const void>(embedding, embedding.scalar_type(), w.V * w.C, "embedding");
    w.embedding = std::make_unique<Embedding>(float_type(embedding), w.C, table);
  } else {
    STD_TORCH_CHECK(place.size() == 4, "model_create: wrong place of the embedding");
    const FloatType type = float_type(embedding);
    const int own = fcntl(static_cast<int>(place[0]), F_DUPFD_CLOEXEC, 0);
    if (own < 0) return -errno;
    w.embedding = std::make_unique<Embedding>(type, w.C, TablePlace{own, place[1], place[2], place[3]});
  }
  w.final_norm = norm(shared[0], w.C);
  w.head = packed(shared[1], w.V);
  for (size_t i = 0; i < windows.size(); ++i) {
    const Tensor* t = &layers[i * kTensorsPerLayer];
    LayerWeights layer;
    layer.attn_norm = norm(t[0], w.C);
    layer.q = packed(t[1], w.H * w.D);
    layer.k = packed(t[2], w.G * w.D);
    layer.v = packed(t[3], w.G * w.D);
    layer.o = packed(t[4], w.C);
    layer.q_norm = t[5].numel() == 0 ? nullptr : norm(t[5], w.H * w.D);
    layer.k_norm = t[6].numel() == 0 ? nullptr : norm(t[6], w.G * w.D);
    layer.mlp_norm = norm(t[7], w.C);
    layer.gate = packed(t[8], w.F);
    layer.up = packed(t[9], w.F);
    layer.down = packed(t[10], w.C);
    layer.window = windows[i];
    w.layers.push_back(layer);
  }
  auto entry = std::make_shared<Entry>();
  entry->model =
      std::make_unique<Model>(kernels_of(checked_isa(isa)), linears, std::move(w), chunk, static_cast<int>(threads));
  entry->tensors = std::move(shared);
  entry->tensors.push_back(embedding);
  entry->tensors.insert(entry->tensors.end(), layers.begin(), layers.end());
  std::lock_guard<std::mutex> lock(registry().mutex);
  const int64_t handle = registry().next++;
  registry().entries[handle] = std::move(entry);
  return handle;
}

int64_t model_scratch_bytes(int64_t handle) { return entry_of(handle)->model->scratch_bytes(); }

// ids (T); cos, sin (positions, rope_half) float32; logits (V) or, with all_logits, (T, V) float32; cancel: the
// address of a byte that turns non-zero, or 0. Returns how the step ended (cpu/model.h).
int64_t model_step(int64_t handle, std::vector<int64_t> ids, int64_t position, const Tensor& k, const Tensor& v,
                   const Tensor& k_scale, const Tensor& v_scale, const Tensor& cos, const Tensor& sin,
                   const Tensor& logits, bool all_logits, int64_t cancel) {
  const std::shared_ptr<Entry> entry = entry_of(handle);
  std::lock_guard<std::mutex> lock(entry->mutex);
  const int64_t T = static_cast<int64_t>(ids.size()), V = entry->model->weights().V;
  for (const int64_t id : ids) STD_TORCH_CHECK(id >= 0 && id < V, "ids: outside the vocabulary");
  StepRequest request = step_request(*entry->model, position, T, {k, v, k_scale, v_scale}, cos, sin, cancel);
  request.T = T;
  request.ids = ids.data();
  request.logits = data_of<float>(logits, ScalarType::Float, (all_logits ? T : 1) * V, "logits");
  request.all_logits = all_logits;
  return entry->model->step(request);
}

// token: the first to run, at `position`; logits (V) float32 of the last step; tokens (count) int64: what was chosen
// after each, -1 where that cannot be told for sure. uniforms float64: random numbers, the first `used` are spent. The
// rest as in model_step and sample. Returns as write_passage does.
int64_t model_write(int64_t handle, int64_t token, int64_t position, const Tensor& k, const Tensor& v,
                    const Tensor& k_scale, const Tensor& v_scale, const Tensor& cos, const Tensor& sin,
                    const Tensor& logits, int64_t vocab, const Tensor& seen, const Tensor& counts, int64_t distinct,
                    bool uses_history, const Tensor& settings, const Tensor& uniforms, int64_t used,
                    std::vector<int64_t> stop_ids, double seconds, int64_t cancel, const Tensor& tokens) {
  const std::shared_ptr<Entry> entry = entry_of(handle);
  std::lock_guard<std::mutex> lock(entry->mutex);
  const int64_t V = entry->model->weights().V, count = tokens.numel();
  STD_TORCH_CHECK(token >= 0 && token < V && vocab <= V, "token: outside the vocabulary");
  const Choosing choosing = choosing_arguments(vocab, seen, counts, distinct, uses_history, settings, uniforms, used,
                                               stop_ids, seconds, count);
  StepRequest first = step_request(*entry->model, position, count, {k, v, k_scale, v_scale}, cos, sin, cancel);
  first.T = 1;
  first.ids = &token;
  first.logits = data_of<float>(logits, ScalarType::Float, V, "logits");
  first.all_logits = false;
  return write_passage(*entry->model, first, choosing, data_of<int64_t>(tokens, ScalarType::Long, count, "tokens"));
}

void model_close(int64_t handle) {
  std::shared_ptr<Entry> last;  // freed outside the lock, and by a step that still runs
  std::lock_guard<std::mutex> lock(registry().mutex);
  const auto found = registry().entries.find(handle);
  if (found == registry().entries.end()) return;
  last = std::move(found->second);
  registry().entries.erase(found);
}

}  // namespace exl2
