// Scalar codes of 4 bits a number with a step of their own: x[j] is about (level - kMiddleLevel) * step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ra_bench {

constexpr float kMiddleLevel = 7.5f;  // of 16 levels

// The levels of x (d), one byte each; returns the step that makes the code's inner product with x right.
float encode_four_bits(const float* x, size_t d, uint8_t* levels);

}  // namespace ra_bench
