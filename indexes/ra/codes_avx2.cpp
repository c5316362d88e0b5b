// The loops of code_kernels.hpp for CPUs with AVX2. The trap of kernels_avx2.cpp holds here too: everything in an
// anonymous namespace.

#include "code_kernels.hpp"

#if defined(__AVX2__)

#include <immintrin.h>

namespace ra_bench {
namespace {

constexpr size_t kAhead = 8;  // keys between a prefetch and its use

inline void fetch(const uint8_t* row, size_t stride) {
  for (size_t offset = 0; offset < stride; offset += 64)
    _mm_prefetch(reinterpret_cast<const char*>(row + offset), _MM_HINT_T0);
}

inline __m256i chunk_sums(const uint8_t* row, const int8_t* levels) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
  const __m256i first = _mm256_and_si256(both, low), second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
  const __m256i* q = reinterpret_cast<const __m256i*>(levels);
  // At most 2 * 15 * 127 a pair: 16 bits hold the sum of both products.
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(first, _mm256_loadu_si256(q)),
                                         _mm256_maddubs_epi16(second, _mm256_loadu_si256(q + 1)));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

inline int32_t sum_lanes(__m256i sums) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

inline int32_t sum_of(const uint8_t* row, size_t stride, const int8_t* levels) {
  __m256i sums = chunk_sums(row, levels);
  for (size_t c = kChunkBytes; c < stride; c += kChunkBytes)
    sums = _mm256_add_epi32(sums, chunk_sums(row + c, levels + 2 * c));
  return sum_lanes(sums);
}

void score(const uint8_t* rows, size_t stride, const float* steps, const int8_t* const* levels, const float* middles,
           size_t queries, const int32_t* ids, size_t count, float* scores, size_t apart) {
  for (size_t i = 0; i < count && i < kAhead; ++i) fetch(rows + static_cast<size_t>(ids[i]) * stride, stride);
  for (size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) fetch(rows + static_cast<size_t>(ids[i + kAhead]) * stride, stride);
    const uint8_t* row = rows + static_cast<size_t>(ids[i]) * stride;
    const float step = steps[row[stride - 1]];
    for (size_t q = 0; q < queries; ++q)
      scores[q * apart + i] = step * (static_cast<float>(sum_of(row, stride, levels[q])) - middles[q]);
  }
}

// 16 bytes as numbers of 16 bits: a product of two bytes, one of them without a sign, may be too large for that.
inline __m256i widen_bytes(const uint8_t* bytes) {
  const __m128i middle = _mm_set1_epi8(static_cast<char>(kMiddleByte));
  return _mm256_cvtepi8_epi16(_mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)), middle));
}

void dot_bytes(const uint8_t* rows, size_t width, int32_t by, const int32_t* ids, size_t count, float* dots) {
  const uint8_t* query = rows + static_cast<size_t>(by) * width;
  for (size_t i = 0; i < count && i < kAhead; ++i) fetch(rows + static_cast<size_t>(ids[i]) * width, width);
  for (size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) fetch(rows + static_cast<size_t>(ids[i + kAhead]) * width, width);
    const uint8_t* row = rows + static_cast<size_t>(ids[i]) * width;
    __m256i sums = _mm256_setzero_si256();
    for (size_t j = 0; j < width; j += 16)
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(widen_bytes(row + j), widen_bytes(query + j)));
    dots[i] = static_cast<float>(sum_lanes(sums));
  }
}

bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
}

}  // namespace

const CodeKernels* codes_avx2() {
  static const CodeKernels table = {"avx2", supported, score, codes_plain()->keep_good, dot_bytes};
  return &table;
}

}  // namespace ra_bench

#else

namespace ra_bench {
const CodeKernels* codes_avx2() { return nullptr; }
}  // namespace ra_bench

#endif
