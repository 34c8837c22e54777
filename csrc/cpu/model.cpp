#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <utility>

#include "crew.h"

namespace exl2 {

namespace {

constexpr int64_t kLineBytes = 64;
constexpr int kMostProducts = 3;        // q, k and v share one phase
constexpr int64_t kRowsPerItem = 32;    // query rows that attention takes over the cache together

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

// Everything a step writes besides cache and logits; allocated once.
struct Model::Scratch {
  Scratch(const LinearKernels& linears, const ModelWeights& w, int64_t M, int threads) {
    int64_t prepared_bytes = linears.scratch_bytes(w.head, M);
    for (const LayerWeights& layer : w.layers) {
      for (const uint8_t* blob : {layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down}) {
        prepared_bytes = std::max(prepared_bytes, linears.scratch_bytes(blob, M));
      }
    }
    // First pass measures, second one hands out.
    for (int pass = 0; pass < 2; ++pass) {
      uint8_t* next = memory;
      const auto floats = [&](int64_t count) {
        return reinterpret_cast<float*>(std::exchange(next, next + round_up(count * 4, kLineBytes)));
      };
      x = floats(M * w.C);
      h = floats(std::max<int64_t>(M, threads) * w.C);
      q = floats(M * w.H * w.D);
      k = floats(M * w.G * w.D);
      v = floats(M * w.G * w.D);
      mixed = floats(M * w.H * w.D);
      gate = floats(M * w.F);
      up = floats(M * w.F);
      out = floats(M * w.C);
      for (uint8_t*& slot : prepared) slot = std::exchange(next, next + round_up(prepared_bytes, kLineBytes));
      if (pass == 0) {
        bytes = next - memory;
        memory = static_cast<uint8_t*>(std::aligned_alloc(kLineBytes, static_cast<size_t>(bytes)));
        if (memory == nullptr) throw std::bad_alloc();
      }
    }
  }
  ~Scratch() { std::free(memory); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  uint8_t* memory = nullptr;
  int64_t bytes = 0;
  float* x;      // (M, C) residual
  float* h;      // (M, C) normed; with M = 1 one row per thread
  float* q;      // (M, H, D)
  float* k;      // (M, G, D)
  float* v;      // (M, G, D)
  float* mixed;  // (M, H, D) what attention returns
  float* gate;   // (M, F)
  float* up;     // (M, F)
  float* out;    // (M, C) of o and down, before it joins the residual
  uint8_t* prepared[kMostProducts];  // inputs in the form that the linears' kernels want
  bool stopped = false;              // written by thread 0 before a barrier, read by all behind it
};

// One thread's walk through a step. All threads run the same phases; a phase ends with a barrier.
class Model::Runner {
 public:
  Runner(Model& model, const StepRequest& request, Crew& crew)
      : kernels_(model.kernels_),
        linears_(model.linears_),
        w_(model.weights_),
        s_(*model.scratch_),
        request_(request),
        crew_(crew),
        chunk_(model.chunk_) {}

  void run() {
    const int64_t layers = static_cast<int64_t>(w_.layers.size());
    for (int64_t begin = 0; begin < request_.T; begin += chunk_) {
      first_ = begin;
      M_ = std::min(chunk_, request_.T - begin);
      skip_ = 0;
      embed();
      for (int64_t layer = 0; layer < layers && !s_.stopped && M_ > skip_; ++layer) {
        run_layer(layer, layer + 1 == layers);
      }
      if (s_.stopped) return;
      if (M_ > skip_) run_head();
    }
  }

 private:
  struct Product {
    const uint8_t* blob;
    float* out;
    int64_t ldo;
    const uint8_t* input = nullptr;  // set by prepare()
  };

  void run_layer(int64_t index, bool last_layer) {
    const LayerWeights& layer = w_.layers[static_cast<size_t>(index)];
    const int64_t query_size = w_.H * w_.D, kv_size = w_.G * w_.D;
    Product qkv[3] = {{layer.q, s_.q, query_size}, {layer.k, s_.k, kv_size}, {layer.v, s_.v, kv_size}};
    normalize_and_prepare(layer.attn_norm, qkv, 3);
    multiply(qkv, 3);
    rotate_and_store(index);
    // Behind the last layer's cache only rows whose logits are wanted go on: none of this chunk, or its last.
    if (last_layer && !request_.all_logits) {
      const bool last_chunk = first_ + M_ == request_.T;
      skip_ = last_chunk ? M_ - 1 : M_;
      if (!last_chunk) return;
    }
    attend(index);
    Product o = {layer.o, s_.out, w_.C};
    prepare(s_.mixed, query_size, &o, 1);
    multiply_and_add(o);

    Product gate_up[2] = {{layer.gate, s_.gate, w_.F}, {layer.up, s_.up, w_.F}};
    normalize_and_prepare(layer.mlp_norm, gate_up, 2);
    multiply_gate_up(gate_up[0], gate_up[1]);
    Product down = {layer.down, s_.out, w_.C};
    prepare(s_.gate, w_.F, &down, 1);
    poll_cancel();
    multiply_and_add(down);
  }

  void run_head() {
    Product head = {w_.head, request_.logits + (request_.all_logits ? first_ * w_.V : 0), w_.V};
    normalize_and_prepare(w_.final_norm, &head, 1);
    multiply(&head, 1);
  }

  int64_t rows() const { return M_ - skip_; }
  float* residual() const { return s_.x + skip_ * w_.C; }

  // Takes effect for all threads behind the next barrier. Between the barrier before it and this call nobody reads the
  // flag, else threads could disagree and wait for each other for ever.
  void poll_cancel() {
    if (crew_.thread() == 0 && request_.cancel != nullptr && *request_.cancel != 0) s_.stopped = true;
  }

  void embed() {
    const int64_t row_bytes = w_.C * (w_.embedding_type == FloatType::kF32 ? 4 : 2);
    const uint8_t* table = static_cast<const uint8_t*>(w_.embedding);
    for (int64_t begin, end; crew_.claim(M_, crew_.piece(M_), &begin, &end);) {
      for (int64_t m = begin; m < end; ++m) {
        kernels_.to_float(w_.embedding_type, table + request_.ids[first_ + m] * row_bytes, w_.C, s_.x + m * w_.C);
      }
    }
    crew_.barrier();
  }

  // products[i].input = the rows of x (rows, K) in the form of their kernels. Equal inputs are prepared once.
  void prepare(const float* x, int64_t K, Product* products, int count) {
    for (int i = 0; i < count; ++i) {
      const uint64_t key = linears_.input_key(products[i].blob);
      for (int j = 0; j < i && products[i].input == nullptr; ++j) {
        if (linears_.input_key(products[j].blob) == key) products[i].input = products[j].input;
      }
      if (products[i].input != nullptr) continue;
      linears_.prepare(products[i].blob, x, rows(), K, s_.prepared[i], crew_.thread(), crew_.threads());
      products[i].input = s_.prepared[i];
    }
    crew_.barrier();
  }

  void normalize_and_prepare(const float* weight, Product* products, int count) {
    if (rows() == 1) {
      // Every thread norms the row for itself: cheaper than to meet.
      float* mine = s_.h + crew_.thread() * w_.C;
      kernels_.rms_norm(residual(), weight, w_.eps, w_.C, mine);
      return prepare(mine, w_.C, products, count);
    }
    for (int64_t begin, end; crew_.claim(rows(), crew_.piece(rows()), &begin, &end);) {
      for (int64_t m = begin; m < end; ++m) {
        kernels_.rms_norm(residual() + m * w_.C, weight, w_.eps, w_.C, s_.h + m * w_.C);
      }
    }
    crew_.barrier();
    prepare(s_.h, w_.C, products, count);
  }

  // One loop over the tiles of all products, so that a small one does not leave threads idle.
  void multiply(const Product* products, int count) {
    int64_t total = 0;
    for (int i = 0; i < count; ++i) total += linears_.tiles(products[i].blob);
    for (int64_t begin, end; crew_.claim(total, crew_.piece(total), &begin, &end);) {
      int64_t offset = 0;
      for (int i = 0; i < count; ++i) {
        const Product& p = products[i];
        const int64_t tiles = linears_.tiles(p.blob);
        const int64_t from = std::max(begin - offset, int64_t{0}), to = std::min(end - offset, tiles);
        if (from < to) linears_.multiply(p.blob, p.input, rows(), p.out, p.ldo, from, to);
        offset += tiles;
      }
    }
    crew_.barrier();
  }

  void multiply_and_add(const Product& product) {
    const int64_t tiles = linears_.tiles(product.blob);
    for (int64_t begin, end; crew_.claim(tiles, crew_.piece(tiles), &begin, &end);) {
      linears_.multiply(product.blob, product.input, rows(), product.out, product.ldo, begin, end);
      const int64_t column = begin * kLinearTileColumns;
      const int64_t columns = std::min(end * kLinearTileColumns, w_.C) - column;
      for (int64_t m = 0; m < rows(); ++m) {
        kernels_.add(residual() + m * w_.C + column, product.out + m * w_.C + column, columns);
      }
    }
    crew_.barrier();
  }

  // The same columns of gate and up by the same thread, which then has all it needs for the activation.
  void multiply_gate_up(const Product& gate, const Product& up) {
    const int64_t tiles = linears_.tiles(gate.blob);
    for (int64_t begin, end; crew_.claim(tiles, crew_.piece(tiles), &begin, &end);) {
      linears_.multiply(gate.blob, gate.input, rows(), s_.gate, w_.F, begin, end);
      linears_.multiply(up.blob, up.input, rows(), s_.up, w_.F, begin, end);
      const int64_t column = begin * kLinearTileColumns;
      const int64_t columns = std::min(end * kLinearTileColumns, w_.F) - column;
      for (int64_t m = 0; m < rows(); ++m) {
        float* row = s_.gate + m * w_.F + column;
        kernels_.silu_mul(row, s_.up + m * w_.F + column, columns, row);
      }
    }
    crew_.barrier();
  }

  void rotate_and_store(int64_t index) {
    const LayerWeights& layer = w_.layers[static_cast<size_t>(index)];
    const float softmax_scale = 1.0f / std::sqrt(static_cast<float>(w_.D));
    const int64_t heads = w_.H + w_.G, total = M_ * heads;
    for (int64_t begin, end; crew_.claim(total, crew_.piece(total), &begin, &end);) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t m = item / heads, head = item % heads, position = request_.position + first_ + m;
        const float* cos = request_.cos + position * w_.rope_half;
        const float* sin = request_.sin + position * w_.rope_half;
        const bool is_query = head < w_.H;
        const int64_t kv = head - w_.H;
        float* vector = is_query ? s_.q + (m * w_.H + head) * w_.D : s_.k + (m * w_.G + kv) * w_.D;
        const float* norm = is_query ? layer.q_norm : layer.k_norm;
        if (norm != nullptr) kernels_.rms_norm(vector, norm + (is_query ? head : kv) * w_.D, w_.eps, w_.D, vector);
        kernels_.rope(vector, w_.rope_half, cos, sin);
        if (is_query) {
          kernels_.scale(vector, softmax_scale, w_.D);
        } else {
          kernels_.store_token(cache_of(index, kv), position, vector, s_.v + (m * w_.G + kv) * w_.D);
        }
      }
    }
    crew_.barrier();
  }

  // Work items: kv head x part of its query heads x block of tokens. The query heads of a kv head are parted only where
  // the kv heads alone do not share out evenly, since each part reads the cache again.
  void attend(int64_t index) {
    const int64_t per_kv = w_.H / w_.G;
    int64_t parts = 1;
    while (parts < per_kv && w_.G * parts % crew_.threads() != 0) ++parts;
    const int64_t tokens_per_item = std::max<int64_t>(1, kRowsPerItem * parts / per_kv);
    const int64_t blocks = (rows() + tokens_per_item - 1) / tokens_per_item;
    const int64_t stride = w_.H * w_.D;
    for (int64_t begin, end; crew_.claim(w_.G * parts * blocks, 1, &begin, &end);) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item % blocks, part = item / blocks % parts, kv = item / blocks / parts;
        const int64_t head = kv * per_kv + per_kv * part / parts;
        const int64_t head_end = kv * per_kv + per_kv * (part + 1) / parts;
        const int64_t token = block * tokens_per_item;
        AttentionTask task;
        task.cache = cache_of(index, kv);
        task.q = s_.q + (skip_ + token) * stride + head * w_.D;
        task.q_stride = stride;
        task.out = s_.mixed + token * stride + head * w_.D;
        task.out_stride = stride;
        task.tokens = std::min(tokens_per_item, rows() - token);
        task.heads = head_end - head;
        task.position = request_.position + first_ + skip_ + token;
        task.window = w_.layers[static_cast<size_t>(index)].window;
        kernels_.attention(task);
      }
    }
    crew_.barrier();
  }

  CacheHead cache_of(int64_t layer, int64_t kv) const { return cache_head(request_.cache, w_.D, layer * w_.G + kv); }

  const Kernels& kernels_;
  const LinearKernels& linears_;
  const ModelWeights& w_;
  Scratch& s_;
  const StepRequest& request_;
  Crew& crew_;
  const int64_t chunk_;
  int64_t first_ = 0;  // the chunk in work: tokens first_ ... first_ + M_ - 1 of the step
  int64_t M_ = 0;
  int64_t skip_ = 0;  // leading rows of it that nobody needs any more
};

Model::Model(const Kernels* kernels, const LinearKernels* linears, ModelWeights weights, int64_t chunk, int threads)
    : kernels_(*kernels),
      linears_(*linears),
      weights_(std::move(weights)),
      chunk_(chunk),
      threads_(std::clamp(threads, 1, kMaxThreads)),
      scratch_(std::make_unique<Scratch>(*linears, weights_, chunk, threads_)) {}

Model::~Model() = default;

int64_t Model::scratch_bytes() const { return scratch_->bytes; }

bool Model::step(const StepRequest& request) {
  struct Job {
    Model& model;
    const StepRequest& request;
  } job = {*this, request};
  scratch_->stopped = false;
  run_job(
      threads_,
      [](Crew& crew, void* context) {
        Job& shared = *static_cast<Job*>(context);
        Runner(shared.model, shared.request, crew).run();
      },
      &job);
  return !scratch_->stopped;
}

}  // namespace exl2
