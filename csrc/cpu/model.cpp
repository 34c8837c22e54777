#include "model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <utility>

#include "crew.h"

namespace exl2 {

namespace {

constexpr int64_t kLineBytes = 64;
constexpr int kMostProducts = 3;            // q, k and v have the same input
constexpr int64_t kRowsPerItem = 32;        // query rows that attention takes over the cache together
constexpr int64_t kLeastRows = 4;           // of norm or rope: fewer are done before another thread has heard of them
constexpr int64_t kLeastWork = 65536;       // multiply-adds: about a microsecond
constexpr int64_t kTilesTogether = 2;       // of a block of rows (linear_chunks.h)
constexpr int64_t kLeastSharedRow = 16384;  // inputs of a linear: from here on one row is worth sharing
constexpr int64_t kExpectedBytes = 262144;  // of weights, fetched by a thread that waits: a quarter of its L2

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

// Everything a step writes besides cache and logits; allocated once.
struct Model::Scratch {
  Scratch(const LinearKernels& linears, const ModelWeights& w, int64_t M) {
    int64_t prepared_bytes = linears.scratch_bytes(w.head, M);
    for (const LayerWeights& layer : w.layers) {
      for (const uint8_t* blob : {layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down}) {
        prepared_bytes = std::max(prepared_bytes, linears.scratch_bytes(blob, M));
      }
    }
    // The first pass measures, the second one hands out.
    for (int pass = 0; pass < 2; ++pass) {
      int64_t offset = 0;
      const auto take = [&](int64_t size) {
        const int64_t at = std::exchange(offset, offset + round_up(size, kLineBytes));
        return memory == nullptr ? nullptr : memory + at;
      };
      const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count * 4)); };
      x = floats(M * w.C);
      h = floats(M * w.C);
      q = floats(M * w.H * w.D);
      k = floats(M * w.G * w.D);
      v = floats(M * w.G * w.D);
      mixed = floats(M * w.H * w.D);
      gate = floats(M * w.F);
      up = floats(M * w.F);
      out = floats(M * w.C);
      for (uint8_t*& slot : prepared) slot = take(prepared_bytes);
      if (pass == 0) {
        bytes = offset;
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
  float* x;                          // (M, C) residual
  float* h;                          // (M, C) normed
  float* q;                          // (M, H, D)
  float* k;                          // (M, G, D)
  float* v;                          // (M, G, D)
  float* mixed;                      // (M, H, D) what attention returns
  float* gate;                       // (M, F)
  float* up;                         // (M, F)
  float* out;                        // (M, C) of o and down, before it joins the residual
  uint8_t* prepared[kMostProducts];  // inputs in the form that the linears' kernels want
};

// One walk through a step, led by the calling thread.
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

  // As Model::step.
  int run() {
    const int64_t layers = static_cast<int64_t>(w_.layers.size());
    for (first_ = 0; first_ < request_.T; first_ += chunk_) {
      M_ = std::min(chunk_, request_.T - first_);
      skip_ = 0;
      if (const int error = embed(); error != 0) return -error;
      for (int64_t layer = 0; layer < layers; ++layer) {
        if (request_.cancel != nullptr && *request_.cancel != 0) return kStepCancelled;
        run_layer(layer, layer + 1 == layers);
      }
      if (rows() > 0) run_head();
    }
    return kStepDone;
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
    normalize(layer.attn_norm);
    prepare(s_.h, w_.C, qkv, 3);
    expect({layer.o}, query_size);
    multiply(w_.C, qkv, 3);
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
    expect({layer.gate}, 2 * w_.C);
    multiply_and_add(query_size, o);

    Product gate_up[2] = {{layer.gate, s_.gate, w_.F}, {layer.up, s_.up, w_.F}};
    normalize(layer.mlp_norm);
    prepare(s_.h, w_.C, gate_up, 2);
    expect({layer.down}, w_.F);
    multiply_gate_up(gate_up[0], gate_up[1]);
    Product down = {layer.down, s_.out, w_.C};
    prepare(s_.gate, w_.F, &down, 1);
    last_layer ? expect({w_.head}, w_.C) : expect_layer(index + 1);
    multiply_and_add(w_.F, down);
  }

  void run_head() {
    Product head = {w_.head, request_.logits + (request_.all_logits ? first_ * w_.V : 0), w_.V};
    normalize(w_.final_norm);
    prepare(s_.h, w_.C, &head, 1);
    expect_layer(0);  // of the next token, while this one is chosen
    multiply(w_.C, &head, 1);
  }

  int64_t rows() const { return M_ - skip_; }
  float* residual() const { return s_.x + skip_ * w_.C; }

  // 0, or the errno of a row that could not be read.
  int embed() {
    const int64_t* ids = request_.ids + first_;
    if (M_ > 1) w_.embedding->expect(ids, M_);
    std::atomic<int> error{0};
    crew_.share(M_, std::max(kLeastRows, crew_.even_piece(M_)), [&](int64_t begin, int64_t end) {
      float* room = s_.h + begin * w_.C;  // not in use yet, and a row that is stored is not larger than one in float32
      const int found = w_.embedding->read(kernels_, ids + begin, end - begin, room, s_.x + begin * w_.C);
      if (found != 0) error = found;
    });
    return error;
  }

  // h = norm(x)
  void normalize(const float* weight) {
    crew_.share(rows(), std::max(kLeastRows, crew_.even_piece(rows())), [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        kernels_.rms_norm(residual() + m * w_.C, weight, w_.eps, w_.C, s_.h + m * w_.C);
      }
    });
  }

  // products[i].input = the rows of x (rows, K) in the form of their kernels. Equal inputs are prepared once. A single
  // row takes the leader less time than handing it out would.
  void prepare(const float* x, int64_t K, Product* products, int count) {
    const int parts = rows() == 1 && K < kLeastSharedRow ? 1 : crew_.threads();
    for (int i = 0; i < count; ++i) {
      const uint64_t key = linears_.input_key(products[i].blob);
      for (int j = 0; j < i && products[i].input == nullptr; ++j) {
        if (linears_.input_key(products[j].blob) == key) products[i].input = products[j].input;
      }
      if (products[i].input != nullptr) continue;
      products[i].input = s_.prepared[i];
      crew_.share(parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          linears_.prepare(products[i].blob, x, rows(), K, s_.prepared[i], static_cast<int>(part), parts);
        }
      });
    }
  }

  // A piece of `tiles` of linears with K inputs. None is too small to be worth it, and with several rows none ends amid
  // the tiles that the kernels take at once.
  int64_t tile_piece(int64_t tiles, int64_t K) const {
    const int64_t even = crew_.even_piece(tiles), least = kLeastWork / (K * kLinearTileColumns * rows());
    return round_up(std::max(even, least), rows() == 1 ? 1 : kTilesTogether);
  }

  // Hands out tiles: work(begin, end).
  template <typename Work>
  void share_tiles(int64_t tiles, int64_t K, const Work& work) {
    crew_.share(tiles, tile_piece(tiles, K), work);
  }

  // Tells each thread where it will begin in the loop after the next over tiles, that of these linears with K inputs.
  // Whoever is done with the next one, or waits for the leader to prepare an input, has memory to himself meanwhile.
  // For one row only: with several, products are bound by arithmetic.
  void expect(std::initializer_list<const uint8_t*> blobs, int64_t K) {
    if (rows() != 1 || crew_.threads() == 1) return;
    int64_t total = 0;
    for (const uint8_t* blob : blobs) total += linears_.tiles(blob);
    const int64_t piece = tile_piece(total, K);
    for (int thread = 0; thread < crew_.threads(); ++thread) {
      int64_t tile = crew_.share_begin(total, piece, thread);
      for (const uint8_t* blob : blobs) {
        const int64_t tiles = linears_.tiles(blob);
        if (tile < tiles) {
          const uint8_t* data = linears_.tile_data(blob, tile);
          crew_.expect(thread, data, std::min(kExpectedBytes, linears_.tile_data(blob, tiles) - data));
          break;
        }
        tile -= tiles;
      }
    }
  }

  void expect_layer(int64_t index) {
    const LayerWeights& layer = w_.layers[static_cast<size_t>(index)];
    expect({layer.q, layer.k, layer.v}, w_.C);
  }

  // One loop over the tiles of all products, so that a small one does not leave threads idle.
  void multiply(int64_t K, const Product* products, int count) {
    int64_t total = 0;
    for (int i = 0; i < count; ++i) total += linears_.tiles(products[i].blob);
    share_tiles(total, K, [&](int64_t begin, int64_t end) {
      for (int i = 0; i < count; ++i) {
        const Product& p = products[i];
        const int64_t tiles = linears_.tiles(p.blob);
        const int64_t from = std::max(begin, int64_t{0}), to = std::min(end, tiles);
        if (from < to) linears_.multiply(p.blob, p.input, rows(), p.out, p.ldo, from, to);
        begin -= tiles;
        end -= tiles;
      }
    });
  }

  // x += the product
  void multiply_and_add(int64_t K, const Product& product) {
    share_tiles(linears_.tiles(product.blob), K, [&](int64_t begin, int64_t end) {
      linears_.multiply(product.blob, product.input, rows(), product.out, product.ldo, begin, end);
      const int64_t column = begin * kLinearTileColumns;
      const int64_t columns = std::min(end * kLinearTileColumns, w_.C) - column;
      for (int64_t m = 0; m < rows(); ++m) {
        kernels_.add(residual() + m * w_.C + column, product.out + m * w_.C + column, columns);
      }
    });
  }

  // gate = silu(gate) * up: whoever has the columns of both has all the activation needs.
  void multiply_gate_up(const Product& gate, const Product& up) {
    share_tiles(linears_.tiles(gate.blob), 2 * w_.C, [&](int64_t begin, int64_t end) {
      linears_.multiply(gate.blob, gate.input, rows(), s_.gate, w_.F, begin, end);
      linears_.multiply(up.blob, up.input, rows(), s_.up, w_.F, begin, end);
      const int64_t column = begin * kLinearTileColumns;
      const int64_t columns = std::min(end * kLinearTileColumns, w_.F) - column;
      for (int64_t m = 0; m < rows(); ++m) {
        float* row = s_.gate + m * w_.F + column;
        kernels_.silu_mul(row, s_.up + m * w_.F + column, columns, row);
      }
    });
  }

  void rotate_and_store(int64_t index) {
    const LayerWeights& layer = w_.layers[static_cast<size_t>(index)];
    const float softmax_scale = 1.0f / std::sqrt(static_cast<float>(w_.D));
    crew_.share(M_, std::max(kLeastRows, crew_.even_piece(M_)), [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        const int64_t position = request_.position + first_ + m;
        const float* cos = request_.cos + position * w_.rope_half;
        const float* sin = request_.sin + position * w_.rope_half;
        const auto rotate = [&](float* vector, const float* norm) {
          if (norm != nullptr) kernels_.rms_norm(vector, norm, w_.eps, w_.D, vector);
          kernels_.rope(vector, w_.rope_half, cos, sin);
        };
        for (int64_t head = 0; head < w_.H; ++head) {
          rotate(s_.q + (m * w_.H + head) * w_.D, layer.q_norm == nullptr ? nullptr : layer.q_norm + head * w_.D);
        }
        kernels_.scale(s_.q + m * w_.H * w_.D, softmax_scale, w_.H * w_.D);
        for (int64_t kv = 0; kv < w_.G; ++kv) {
          const int64_t at = (m * w_.G + kv) * w_.D;
          rotate(s_.k + at, layer.k_norm == nullptr ? nullptr : layer.k_norm + kv * w_.D);
          kernels_.store_token(cache_of(index, kv), position, s_.k + at, s_.v + at);
        }
      }
    });
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
    crew_.share(w_.G * parts * blocks, 1, [&](int64_t begin, int64_t end) {
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
    });
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
      scratch_(std::make_unique<Scratch>(*linears, weights_, chunk)) {}

Model::~Model() = default;

int64_t Model::scratch_bytes() const { return scratch_->bytes; }

int Model::step(const StepRequest& request) {
  Crew crew(threads_);
  return Runner(*this, request, crew).run();
}

}  // namespace exl2
