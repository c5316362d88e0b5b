#include "four_bits.hpp"

#include <algorithm>
#include <cmath>

namespace ra_bench {
namespace {

// The step, in standard deviations, at which 16 even levels lose least of a normal variable (Max 1960).
constexpr float kBestStep = 0.3352f;

}  // namespace

float encode_four_bits(const float* x, size_t d, uint8_t* levels) {
  double squares = 0;
  for (size_t j = 0; j < d; ++j) squares += static_cast<double>(x[j]) * x[j];
  const float deviation = static_cast<float>(std::sqrt(squares / static_cast<double>(d)));
  const float inverse = deviation > 0 ? 1.0f / (kBestStep * deviation) : 0.0f;
  double along = 0, length = 0;  // the step that makes the code's inner product with x right
  for (size_t j = 0; j < d; ++j) {
    const float level = std::min(15.0f, std::max(0.0f, std::nearbyint(x[j] * inverse + kMiddleLevel)));
    levels[j] = static_cast<uint8_t>(level);
    const double c = static_cast<double>(level) - kMiddleLevel;
    along += c * x[j];
    length += c * c;
  }
  return static_cast<float>(along / length);  // a level is never 0, so length is not
}

}  // namespace ra_bench
