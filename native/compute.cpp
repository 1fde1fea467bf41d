// In two phases, so that any number of threads gives the same sums: first h of all groups (split by rows), then y (split by
// columns, or by tokens where there are many), group after group in a fixed order. With weights of 8 bits x is rounded before the
// first and h before the second.
#include "compute.h"

#include <algorithm>
#include <memory>

#include "activation_names.h"
#include "restored.h"

namespace moeify {
namespace {

// Stripes of columns end where blocks of 4 bits end, and where a panel of bytes does.
constexpr std::int64_t kColumnsOfIntegers = 64;
static_assert(kColumnsOfIntegers % kBlock == 0);

std::vector<std::uint8_t>& room_of_thread() {
  static thread_local std::vector<std::uint8_t> room;
  return room;
}

class Call {
 public:
  Call(const Layer& layer, const Kernels& kernels, const Integers& integers, std::atomic<int>& threads, Scratch& scratch,
       std::int64_t first, std::int64_t count)
      : layer_(layer), kernels_(kernels), integers_(integers), threads_(threads), scratch_(scratch), first_(first), count_(count) {}

  void run(const Pool& pool) {
    choose(layer_, first_, count_, scratch_.choosing, scratch_.choice);
    make_plan(layer_, count_, scratch_);
    first_down_ = next_down(layer_, scratch_, 0, 0);
    stripes_ = threads_.load(std::memory_order_relaxed);
    const bool bytes = layer_.attributes.bits == 8;
    if (bytes) spread(pool, &Call::round_x, pieces_of(count_ * layer_.hidden));
    place_x(pool);
    spread(pool, &Call::hidden_task, scratch_.tasks.size());
    if (bytes) spread(pool, &Call::round_hidden, pieces_of(static_cast<std::int64_t>(scratch_.hidden.size())));
    stripes_ = threads_.load(std::memory_order_relaxed);
    by_tokens_ = count_ >= 16 * stripes_;
    spread(pool, &Call::output_task, static_cast<std::size_t>(stripes_));
  }

 private:
  using Member = void (Call::*)(std::size_t);

  void spread(const Pool& pool, Member member, std::size_t count) {
    member_ = member;
    if (count == 1) return (this->*member)(0);
    pool.run(pool.context, [](void* call, std::size_t i) { static_cast<Call*>(call)->counted(i); }, count, this);
  }

  // The pool does not tell how many threads it has; how many are seen at work at once does.
  void counted(std::size_t i) {
    const int now = ++working_;
    int known = threads_.load(std::memory_order_relaxed);
    while (now > known && !threads_.compare_exchange_weak(known, now, std::memory_order_relaxed)) {
    }
    (this->*member_)(i);
    --working_;
  }

  // Few values are copied or rounded faster than threads wake up.
  std::size_t pieces_of(std::int64_t values) {
    pieces_ = values < (64 << 10) ? 1 : stripes_;
    return static_cast<std::size_t>(pieces_);
  }

  void place_x(const Pool& pool) {
    x_ = layer_.x + first_ * layer_.hidden;
    x_stride_ = rows_apart(layer_, count_);
    if (x_stride_ == layer_.hidden) return;
    constexpr std::size_t line = 64;
    std::size_t bytes = static_cast<std::size_t>(count_ * x_stride_) * sizeof(float) + line;
    scratch_.apart.resize(std::max(scratch_.apart.size(), bytes / sizeof(float)));
    void* to = scratch_.apart.data();
    apart_ = static_cast<float*>(std::align(line, bytes - line, to, bytes));
    spread(pool, &Call::copy_x, pieces_of(count_ * layer_.hidden));
    x_ = apart_;
  }

  void copy_x(std::size_t piece) {
    const auto i = static_cast<std::int64_t>(piece);
    for (std::int64_t t = count_ * i / pieces_; t < count_ * (i + 1) / pieces_; ++t)
      std::copy_n(x_ + t * layer_.hidden, layer_.hidden, apart_ + t * x_stride_);
  }

  void round_x(std::size_t piece) {
    const auto i = static_cast<std::int64_t>(piece);
    for (std::int64_t t = count_ * i / pieces_; t < count_ * (i + 1) / pieces_; ++t)
      integers_.round(layer_.x + (first_ + t) * layer_.hidden, layer_.hidden, scratch_.x, t);
  }

  // The scale of a row of `down` belongs to its hidden value: what is left of the row are integers.
  void round_hidden(std::size_t piece) {
    const auto i = static_cast<std::int64_t>(piece);
    for (const Group& group : scratch_.groups) {
      if (group.bits != 8) continue;
      for (std::int64_t t = group.count * i / pieces_; t < group.count * (i + 1) / pieces_; ++t) {
        integers_.scale(group.h + t * group.rows, group.down_scale, group.rows);
        integers_.round(group.h + t * group.rows, group.rows, group.bytes, t);
      }
    }
  }

  const Group& group_of(const Task& task) const { return scratch_.groups[static_cast<std::size_t>(task.group)]; }

  void hidden_task(std::size_t i) {
    const Task& task = scratch_.tasks[i];
    const Group& group = group_of(task);
    float* h = group.h + task.first * group.rows + task.row;
    float* other = group.gate ? group.other + task.first * group.rows + task.row : nullptr;
    if (group.gate) {
      project(task, group.gate, group.gate_scale, group.gate_bias, h,
              rows_of(group.bits, group.up, task.row, task.rows, layer_.hidden));
      project(task, group.up, group.up_scale, group.up_bias, other, ahead_of(i));
    } else {
      project(task, group.up, group.up_scale, group.up_bias, h, ahead_of(i));
    }
    if (group.activation == kIdentity && !group.gates && !group.gate) return;
    for (std::int64_t t = 0; t < task.count; ++t)
      kernels_.finish[group.activation](h + t * group.rows, other ? other + t * group.rows : nullptr,
                                        group.gates ? group.gates[task.first + t] : 1.0f, task.rows);
  }

  void project(const Task& task, const void* weights, const float* scale, const float* bias, float* h, Ahead ahead) const {
    const Group& group = group_of(task);
    if (group.bits == 8) return project_bytes(task, weights, scale, bias, h, ahead);
    Projection p{};
    p.x = x_ + (group.tokens ? 0 : task.first) * x_stride_;
    p.x_stride = x_stride_;
    p.tokens = group.tokens ? group.tokens + task.first : nullptr;
    p.count = task.count;
    p.weights = row_of(group.bits, weights, task.row, layer_.hidden);
    p.bias = bias ? bias + task.row : nullptr;
    p.rows = task.rows;
    p.hidden = layer_.hidden;
    p.h = h;
    p.h_stride = group.rows;
    p.ahead = ahead;
    if (group.bits == 4) return project_restored(kernels_, integers_, p, scale + task.row * (layer_.hidden / kBlock));
    kernels_.project[static_cast<int>(layer_.stored)](p);
  }

  void project_bytes(const Task& task, const void* weights, const float* scale, const float* bias, float* h, Ahead ahead) const {
    const Group& group = group_of(task);
    Projection8 p{};
    p.x = rows_from(scratch_.x, group.tokens ? 0 : task.first);
    p.tokens = group.tokens ? group.tokens + task.first : nullptr;
    p.count = task.count;
    p.weights = static_cast<const std::uint8_t*>(weights) + task.row * layer_.hidden;
    p.scale = scale + task.row;
    p.bias = bias ? bias + task.row : nullptr;
    p.rows = task.rows;
    p.hidden = layer_.hidden;
    p.h = h;
    p.h_stride = group.rows;
    p.ahead = ahead;
    p.room = &room_of_thread();
    integers_.project(p);
  }

  static Bytes8 rows_from(const Bytes8& rows, std::int64_t first) {
    return {rows.values + first * rows.stride, rows.stride, rows.step + first, rows.shift + first};
  }

  // The weights that this thread is likely to work on next.
  Ahead ahead_of(std::size_t i) const {
    const std::size_t next = i + static_cast<std::size_t>(threads_.load(std::memory_order_relaxed));
    if (next >= scratch_.tasks.size()) return first_down_;
    const Task& task = scratch_.tasks[next];
    const Group& group = group_of(task);
    return rows_of(group.bits, group.gate ? group.gate : group.up, task.row, task.rows, layer_.hidden);
  }

  void output_task(std::size_t stripe) {
    const std::int64_t i = static_cast<std::int64_t>(stripe);
    const std::int64_t block = std::max<std::int64_t>(kernels_.column_block, layer_.attributes.bits ? kColumnsOfIntegers : 1);
    if (by_tokens_) return output(count_ * i / stripes_, count_ * (i + 1) / stripes_, 0, layer_.output);
    const std::int64_t blocks = (layer_.output + block - 1) / block;
    output(0, count_, std::min(blocks * i / stripes_ * block, layer_.output),
           std::min(blocks * (i + 1) / stripes_ * block, layer_.output));
  }

  // y of tokens [first, last) in columns [from, to).
  void output(std::int64_t first, std::int64_t last, std::int64_t from, std::int64_t to) const {
    for (std::int64_t t = first; t < last; ++t) {
      float* y = layer_.y + (first_ + t) * layer_.output;
      layer_.output_bias ? void(std::copy(layer_.output_bias + from, layer_.output_bias + to, y + from))
                         : std::fill(y + from, y + to, 0.0f);
    }
    for (std::size_t g = 0; g < scratch_.groups.size(); ++g) {
      const Group& group = scratch_.groups[g];
      const auto place = [&](std::int64_t token) {
        return group.tokens ? std::lower_bound(group.tokens, group.tokens + group.count, token) - group.tokens : token;
      };
      const std::int64_t begin = place(first), end = place(last);
      each_block(end - begin, to - from,
                 [&](std::int64_t skip, std::int64_t count) { accumulate(g, begin + skip, count, from, to); });
    }
  }

  // All rows of a group on its tokens [at, at + count).
  void accumulate(std::size_t g, std::int64_t at, std::int64_t count, std::int64_t from, std::int64_t to) const {
    const Group& group = scratch_.groups[g];
    if (group.bits == 8) return accumulate_bytes(g, at, count, from, to);
    const std::int64_t rows = rows_at_once(group.bits, layer_.output);
    for (std::int64_t row = 0; row < group.rows; row += rows) {
      Accumulation a{};
      a.h = group.h + at * group.rows + row;
      a.h_stride = group.rows;
      a.tokens = group.tokens ? group.tokens + at : nullptr;
      a.count = count;
      a.weights = row_of(group.bits, row_of(group.bits, group.down, row, layer_.output), from, 1);
      a.rows = std::min(rows, group.rows - row);
      a.columns = to - from;
      a.output = layer_.output;
      a.y = layer_.y + (first_ + (group.tokens ? 0 : at)) * layer_.output + from;
      a.ahead = next_down(layer_, scratch_, g, row + rows);
      if (group.bits == 4)
        accumulate_restored(kernels_, integers_, a, group.down_scale + row * (layer_.output / kBlock) + from / kBlock);
      else
        kernels_.accumulate[static_cast<int>(layer_.stored)](a);
    }
  }

  void accumulate_bytes(std::size_t g, std::int64_t at, std::int64_t count, std::int64_t from, std::int64_t to) const {
    const Group& group = scratch_.groups[g];
    Accumulation8 a{};
    a.h = rows_from(group.bytes, at);
    a.tokens = group.tokens ? group.tokens + at : nullptr;
    a.count = count;
    a.weights = static_cast<const std::uint8_t*>(group.down) + from;
    a.rows = group.rows;
    a.columns = to - from;
    a.output = layer_.output;
    a.y = layer_.y + (first_ + (group.tokens ? 0 : at)) * layer_.output + from;
    a.ahead = next_down(layer_, scratch_, g + 1, 0);
    a.room = &room_of_thread();
    integers_.accumulate(a);
  }

  const Layer& layer_;
  const Kernels& kernels_;
  const Integers& integers_;
  std::atomic<int>& threads_;
  Scratch& scratch_;
  const std::int64_t first_, count_;
  Ahead first_down_{nullptr, nullptr};
  const float* x_ = nullptr;  // of the first token, as weights meet it
  float* apart_ = nullptr;
  std::int64_t x_stride_ = 0, stripes_ = 1, pieces_ = 1;
  bool by_tokens_ = false;
  Member member_ = nullptr;
  std::atomic<int> working_{0};
};

}  // namespace

void compute(const Layer& layer, const Kernels& kernels, const Integers& integers, const Pool& pool, std::atomic<int>& threads,
             Scratch& scratch) {
  const std::int64_t step = tokens_at_once(layer);
  for (std::int64_t first = 0; first < layer.tokens; first += step)
    Call(layer, kernels, integers, threads, scratch, first, std::min(step, layer.tokens - first)).run(pool);
}

}  // namespace moeify
