// float16 (IEEE 754 binary16, as uint16_t) to float32 without special instructions.
#pragma once

#include <cstdint>
#include <cstring>

namespace ra_bench {

inline float half_to_float(uint16_t half) {
  // Shifting the exponent into place leaves it 112 too small; the product by 2^112 puts that right, for
  // subnormal halves too. Infinity and NaN then need the largest exponent.
  uint32_t bits = static_cast<uint32_t>(half & 0x7fffu) << 13;
  float magnitude;
  std::memcpy(&magnitude, &bits, 4);
  magnitude *= 0x1p112f;
  std::memcpy(&bits, &magnitude, 4);
  bits |= (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  bits |= static_cast<uint32_t>(half & 0x8000u) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline float to_float(uint16_t half) { return half_to_float(half); }
inline float to_float(float value) { return value; }

}  // namespace ra_bench
