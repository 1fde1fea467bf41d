#include "plan.h"

#include "activation_names.h"

namespace moeify {
namespace {

constexpr std::int64_t kHiddenValues = 4 << 20;   // values of h at a time, where a token allows
constexpr std::int64_t kTokens = 1024;            // at a time, at most
constexpr std::int64_t kMany = 64;                // tokens for which a copy of x pays
constexpr std::int64_t kWeightBlock = 512 << 10;  // bytes of weights that stay in the cache

std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) { return std::max(low, std::min(value, high)); }

void add_rows(const Layer& layer, std::int64_t from, std::int64_t to, Group group, std::vector<Group>& groups) {
  if (from == to || group.count == 0) return;
  group.bits = layer.attributes.bits ? layer.attributes.bits : bits_of(layer.stored);
  const auto scales = [=](const float* scale, std::int64_t columns) {
    return scale ? scale + from * (group.bits == 4 ? columns / kBlock : 1) : nullptr;
  };
  group.up = row_of(group.bits, layer.up, from, layer.hidden);
  group.gate = row_of(group.bits, layer.gate, from, layer.hidden);
  group.down = row_of(group.bits, layer.down, from, layer.output);
  group.up_scale = scales(layer.up_scale, layer.hidden);
  group.gate_scale = scales(layer.gate_scale, layer.hidden);
  group.down_scale = scales(layer.down_scale, layer.output);
  group.up_bias = layer.up_bias ? layer.up_bias + from : nullptr;
  group.gate_bias = layer.gate_bias ? layer.gate_bias + from : nullptr;
  group.activation = layer.attributes.activation;
  group.rows = to - from;
  groups.push_back(group);
}

// In the order in which their sums are added to y.
void list_groups(const Layer& layer, std::int64_t count, Scratch& scratch) {
  const Choice& choice = scratch.choice;
  Group all{};
  all.count = count;
  scratch.groups.clear();
  add_rows(layer, 0, layer.offsets[0], all, scratch.groups);
  for (std::int64_t e = 0; e < layer.experts; ++e) {
    const std::int64_t at = choice.start[static_cast<std::size_t>(e)];
    Group some{};
    some.count = choice.start[static_cast<std::size_t>(e) + 1] - at;
    some.tokens = choice.tokens.data() + at;
    some.gates = choice.gates.empty() ? nullptr : choice.gates.data() + at;
    add_rows(layer, layer.offsets[e], layer.offsets[e + 1], some, scratch.groups);
  }
  all.activation = kIdentity;
  all.bits = bits_of(layer.stored);
  if (layer.rank && count) {
    Group term = all;
    term.up = layer.low_rank_in;
    term.down = layer.low_rank_out;
    term.rows = layer.rank;
    scratch.groups.push_back(term);
  }
  if (layer.idle && count) {
    Group idle = all;
    idle.down = layer.idle;
    idle.rows = layer.experts;
    idle.h = scratch.choice.idle.data();
    scratch.groups.push_back(idle);
  }
}

void place_hidden(Scratch& scratch) {
  std::size_t size = 0;
  const auto values = [](const Group& group) { return group.up ? static_cast<std::size_t>(group.rows * group.count) : 0; };
  for (const Group& group : scratch.groups) size += values(group) * (group.gate ? 2 : 1);
  scratch.hidden.resize(std::max(scratch.hidden.size(), size));
  float* at = scratch.hidden.data();
  for (Group& group : scratch.groups) {
    if (!group.up) continue;
    group.h = at;
    group.other = group.gate ? at + values(group) : nullptr;
    at += values(group) * (group.gate ? 2 : 1);
  }
}

void list_tasks(const Layer& layer, Scratch& scratch) {
  scratch.tasks.clear();
  for (std::size_t g = 0; g < scratch.groups.size(); ++g) {
    const Group& group = scratch.groups[g];
    if (!group.up) continue;
    const std::int64_t rows = rows_at_once(group.bits, layer.hidden);
    each_block(group.count, layer.hidden, [&](std::int64_t first, std::int64_t count) {
      for (std::int64_t row = 0; row < group.rows; row += rows)
        scratch.tasks.push_back({static_cast<std::int32_t>(g), row, std::min(rows, group.rows - row), first, count});
    });
  }
}

// Room for x and h as bytes; rows of them begin at whole quads, those of x at whole kBytesRow.
void place_bytes(const Layer& layer, std::int64_t count, Scratch& scratch) {
  const auto up_to = [](std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; };
  scratch.x = {nullptr, up_to(layer.hidden, kBytesRow), nullptr, nullptr};
  std::int64_t bytes = count * scratch.x.stride, tokens = count;
  for (Group& group : scratch.groups) {
    if (group.bits != 8) continue;
    group.bytes.stride = up_to(group.rows, 4);
    bytes += group.count * group.bytes.stride;
    tokens += group.count;
  }
  const auto grow = [](auto& vector, std::int64_t size) { vector.resize(std::max(vector.size(), static_cast<std::size_t>(size))); };
  grow(scratch.rounded, bytes);
  grow(scratch.steps, tokens);
  grow(scratch.shifts, tokens);
  Bytes8 at{scratch.rounded.data(), 0, scratch.steps.data(), scratch.shifts.data()};
  const auto place = [&](Bytes8& part, std::int64_t rows) {
    part = {at.values, part.stride, at.step, at.shift};
    at = {at.values + rows * part.stride, 0, at.step + rows, at.shift + rows};
  };
  place(scratch.x, count);
  for (Group& group : scratch.groups)
    if (group.bits == 8) place(group.bytes, group.count);
}

}  // namespace

void make_plan(const Layer& layer, std::int64_t count, Scratch& scratch) {
  list_groups(layer, count, scratch);
  place_hidden(scratch);
  if (layer.attributes.bits == 8) place_bytes(layer, count, scratch);
  list_tasks(layer, scratch);
}

std::int64_t tokens_at_once(const Layer& layer) {
  std::int64_t widest = 0;
  for (std::int64_t e = 0; e < layer.experts; ++e) widest = std::max(widest, layer.offsets[e + 1] - layer.offsets[e]);
  const std::int64_t rows = std::min(layer.offsets[layer.experts], layer.offsets[0] + layer.k * widest) * (layer.gate ? 2 : 1);
  return clamp(kHiddenValues / std::max<std::int64_t>(rows + layer.rank, 1), 64, kTokens);
}

std::int64_t rows_at_once(int bits, std::int64_t columns) {
  const std::int64_t bytes = columns * bits / 8;
  return clamp(kWeightBlock / std::max<std::int64_t>(bytes, 1), 8, 64) / 4 * 4;
}

std::int64_t rows_apart(const Layer& layer, std::int64_t count) {
  constexpr std::int64_t page = 4096 / sizeof(float), line = 64 / sizeof(float);
  return layer.attributes.bits != 8 && count >= kMany && layer.hidden % page == 0 ? layer.hidden + line : layer.hidden;
}

Ahead rows_of(int bits, const void* matrix, std::int64_t row, std::int64_t rows, std::int64_t columns) {
  return {static_cast<const char*>(row_of(bits, matrix, row, columns)),
          static_cast<const char*>(row_of(bits, matrix, row + rows, columns))};
}

Ahead next_down(const Layer& layer, const Scratch& scratch, std::size_t group, std::int64_t row) {
  for (; group < scratch.groups.size(); ++group, row = 0) {
    const Group& next = scratch.groups[group];
    const std::int64_t rows = std::min(rows_at_once(next.bits, layer.output), next.rows - row);
    if (rows > 0) return rows_of(next.bits, next.down, row, rows, layer.output);
  }
  const auto* here = reinterpret_cast<const char*>(&layer);  // in the cache anyway
  return {here, here};
}

}  // namespace moeify
