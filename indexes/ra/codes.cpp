#include "codes.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "pool.hpp"

namespace ra_bench {

const CodeKernels& code_kernels() {
  const std::string best = kernels().name;
  if (best == "avx512" && codes_avx512vnni() && codes_avx512vnni()->supported()) return *codes_avx512vnni();
  if (best != "plain" && codes_avx2() && codes_avx2()->supported()) return *codes_avx2();
  return *codes_plain();
}

namespace {

constexpr float kRoom = 16.0f;     // inserted keys may be so many times as long; longer ones count as that long
constexpr float kSpread = 4096.0f;  // steps smaller than the largest by more than this are the same

// Where dimension i stands among the 2 * stride levels: the last byte of a key is not for dimensions.
inline size_t place_of(size_t i, size_t stride) { return i < 2 * stride - kChunkBytes - 1 ? i : i + 1; }

struct Encoder {
  std::vector<float> key, turned;
  std::vector<uint8_t> levels;

  // The levels of key `id`, which is turned already or not; returns its step.
  float run(const Kernels& kernels, const Codes& codes, const Rows& keys, bool is_turned, size_t id) {
    key.resize(keys.d);
    turned.resize(std::max(codes.kept, keys.d));
    levels.resize(codes.kept);
    if (is_turned) {
      kernels.widen_row(keys, id, turned.data());
    } else {
      kernels.widen_row(keys, id, key.data());
      kernels.dot(key.data(), {codes.to_key.data(), kFloat32, codes.kept, codes.d}, codes.every.data(), codes.kept,
                  turned.data());
      for (size_t j = 0; j < codes.kept; ++j) turned[j] -= codes.offset[j];
    }
    return encode_four_bits(turned.data(), codes.kept, levels.data());
  }
};

}  // namespace

void Codes::set_transform(const float* key, const float* query, const float* mean, size_t kept_dims, size_t dim) {
  d = dim;
  kept = kept_dims;
  stride = kept ? code_stride(d) : 0;
  to_key.assign(key, key + kept * d);
  to_query.assign(query, query + kept * d);
  offset.assign(mean, mean + kept);
  every.resize(kept);
  std::iota(every.begin(), every.end(), 0);
}

void Codes::encode(const Kernels& kernels, const Rows& keys, bool is_turned, size_t from, int threads) {
  if (empty()) return;
  owned.resize(keys.n * stride);
  rows = owned.data();
  std::vector<Encoder> encoders(static_cast<size_t>(std::max(threads, 1)));
  std::vector<float> step_of(keys.n - from);
  parallel_for(threads, static_cast<int64_t>(keys.n - from), 256, [&](int64_t first, int64_t last, int worker) {
    Encoder& encoder = encoders[static_cast<size_t>(worker)];
    for (size_t i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i) {
      step_of[i] = encoder.run(kernels, *this, keys, is_turned, from + i);
      uint8_t* row = owned.data() + (from + i) * stride;
      std::fill(row, row + stride, uint8_t{0});
      for (size_t j = 0; j < kept; ++j) {
        const size_t place = place_of(j, stride), within = place % (2 * kChunkBytes);
        const uint8_t level = encoder.levels[j];
        uint8_t& byte = row[place / (2 * kChunkBytes) * kChunkBytes + within % kChunkBytes];
        byte = static_cast<uint8_t>(byte | (within < kChunkBytes ? level : level << 4));
      }
    }
  });
  if (steps.empty()) {
    float least = 0, most = 0;
    for (float step : step_of) most = std::max(most, step);
    least = most;
    for (float step : step_of)
      if (step > most / kSpread) least = std::min(least, step);
    if (most <= 0) least = most = 1.0f;
    const double ratio = std::log(static_cast<double>(most) * kRoom / least) / (kSteps - 1);
    for (size_t s = 0; s < kSteps; ++s)
      steps.push_back(static_cast<float>(least * std::exp(ratio * static_cast<double>(s))));
  }
  const double per_step = (kSteps - 1) / std::log(static_cast<double>(steps.back()) / steps.front());
  for (size_t i = 0; i < step_of.size(); ++i) {
    const double place = step_of[i] > 0 ? std::log(static_cast<double>(step_of[i]) / steps.front()) * per_step : 0;
    owned[(from + i) * stride + stride - 1] =
        static_cast<uint8_t>(std::lrint(std::min(std::max(place, 0.0), static_cast<double>(kSteps - 1))));
  }
}

void Codes::turn(const Kernels& kernels, const float* query, CodeQuery& out) const {
  out.turned.resize(kept);
  kernels.dot(query, {to_query.data(), kFloat32, kept, d}, every.data(), kept, out.turned.data());
  round(out.turned.data(), out);
}

void Codes::round(const float* turned, CodeQuery& out) const {
  out.levels.assign(2 * stride, 0);
  float largest = 0;
  for (size_t j = 0; j < kept; ++j) largest = std::max(largest, std::fabs(turned[j]));
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  out.scale = largest / 127.0f;
  int32_t sum = 0;
  for (size_t j = 0; j < kept; ++j) {
    const auto level = static_cast<int32_t>(std::lrintf(turned[j] * inverse));
    out.levels[place_of(j, stride)] = static_cast<int8_t>(level);
    sum += level;
  }
  out.middle = kMiddleLevel * static_cast<float>(sum);
}

}  // namespace ra_bench
