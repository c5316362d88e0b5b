#include "lists.hpp"

#include <algorithm>
#include <cmath>

namespace ra_bench {
namespace {

// The step, in standard deviations, at which 16 even levels lose least of a normal variable (Max 1960).
constexpr float kBestStep = 0.3352f;

}  // namespace

size_t Lists::lay_out(const std::vector<int32_t>& sizes) {
  counts = sizes;
  first_block.resize(sizes.size());
  grown.assign(sizes.size(), {});
  size_t blocks = 0;
  for (size_t l = 0; l < sizes.size(); ++l) {
    first_block[l] = blocks;
    blocks += blocks_of(static_cast<size_t>(sizes[l]));
  }
  return blocks;
}

float encode(const float* x, size_t d, uint8_t* code) {
  double squares = 0;
  for (size_t j = 0; j < d; ++j) squares += static_cast<double>(x[j]) * x[j];
  const float deviation = static_cast<float>(std::sqrt(squares / static_cast<double>(d)));
  const float inverse = deviation > 0 ? 1.0f / (kBestStep * deviation) : 0.0f;
  double along = 0, length = 0;  // the step that makes the code's inner product with x right
  for (size_t j = 0; j < d; ++j) {
    const float level = std::min(15.0f, std::max(0.0f, std::nearbyint(x[j] * inverse + kCodeMiddle)));
    code[j] = static_cast<uint8_t>(level);
    const double c = static_cast<double>(level) - kCodeMiddle;
    along += c * x[j];
    length += c * c;
  }
  return static_cast<float>(along / length);  // a level is never 0, so length is not
}

void store_code(const uint8_t* code, size_t d, size_t place, uint8_t* block) {
  for (size_t j = 0; j < d; ++j) {
    uint8_t& byte = block[j / 8 * kSliceBytes + place * 4 + j % 4];
    byte = static_cast<uint8_t>(byte | (j % 8 < 4 ? code[j] : code[j] << 4));
  }
}

void read_code(const uint8_t* block, size_t d, size_t place, uint8_t* code) {
  for (size_t j = 0; j < d; ++j) {
    const uint8_t byte = block[j / 8 * kSliceBytes + place * 4 + j % 4];
    code[j] = j % 8 < 4 ? byte & 15 : byte >> 4;
  }
}

}  // namespace ra_bench
