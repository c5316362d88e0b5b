// The loops of code_kernels.hpp for CPUs with AVX-512 and its VNNI (Cascade Lake 2019, Zen 4 2022, and later). The trap
// of kernels_avx2.cpp holds here too: everything in an anonymous namespace.

#include "code_kernels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

#include <immintrin.h>

namespace ra_bench {
namespace {

constexpr size_t kAhead = 16;    // keys between a prefetch and its use
constexpr size_t kTogether = 8;  // keys scored at once

inline void fetch(const uint8_t* row, size_t stride) {
  for (size_t offset = 0; offset < stride; offset += 64)
    _mm_prefetch(reinterpret_cast<const char*>(row + offset), _MM_HINT_T0);
}

struct Chunk {
  __m256i low, high;
};

inline Chunk unpacked(const uint8_t* row) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
  return {_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16(both, 4), low)};
}

inline __m256i add_chunk(__m256i sums, const Chunk& chunk, const int8_t* levels) {
  const __m256i* q = reinterpret_cast<const __m256i*>(levels);
  sums = _mm256_dpbusd_epi32(sums, chunk.low, _mm256_loadu_si256(q));
  return _mm256_dpbusd_epi32(sums, chunk.high, _mm256_loadu_si256(q + 1));
}

// The sums of eight vectors' lanes.
inline __m256i sum_lanes(const __m256i* v) {
  const __m256i ab = _mm256_hadd_epi32(v[0], v[1]), cd = _mm256_hadd_epi32(v[2], v[3]);
  const __m256i ef = _mm256_hadd_epi32(v[4], v[5]), gh = _mm256_hadd_epi32(v[6], v[7]);
  const __m256i low = _mm256_hadd_epi32(ab, cd), high = _mm256_hadd_epi32(ef, gh);
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

// S is stride where the compiler shall know it, 0 for any.
template <size_t S>
void score_of(const uint8_t* rows, size_t any_stride, const float* steps, const int8_t* const* levels,
              const float* middles, size_t queries, const int32_t* ids, size_t count, float* scores, size_t apart) {
  constexpr size_t kChunks = S ? S / kChunkBytes : 1;
  const size_t stride = S ? S : any_stride;
  for (size_t i = 0; i < count && i < kAhead; ++i) fetch(rows + static_cast<size_t>(ids[i]) * stride, stride);
  for (size_t i = 0; i < count; i += kTogether) {
    for (size_t r = i + kAhead; r < count && r < i + kAhead + kTogether; ++r)
      fetch(rows + static_cast<size_t>(ids[r]) * stride, stride);
    // A last block of fewer keys repeats its last one: cheaper than a second loop.
    const size_t last = count - 1;
    const uint8_t* row[kTogether];
    Chunk chunks[kTogether][kChunks];
    float step_of[kTogether];
    for (size_t r = 0; r < kTogether; ++r) {
      row[r] = rows + static_cast<size_t>(ids[i + r < last ? i + r : last]) * stride;
      if (S)
        for (size_t c = 0; c < kChunks; ++c) chunks[r][c] = unpacked(row[r] + c * kChunkBytes);
      step_of[r] = steps[row[r][stride - 1]];
    }
    // Put together in registers: a load of eight numbers that were stored one by one waits for all of them.
    const __m256 step = _mm256_setr_ps(step_of[0], step_of[1], step_of[2], step_of[3], step_of[4], step_of[5],
                                       step_of[6], step_of[7]);
    const auto there = static_cast<__mmask8>(i + kTogether <= count ? 0xffu : (1u << (count - i)) - 1);
    for (size_t q = 0; q < queries; ++q) {
      __m256i sums[kTogether];
      for (size_t r = 0; r < kTogether; ++r) {
        sums[r] = _mm256_setzero_si256();
        if (S)
          for (size_t c = 0; c < kChunks; ++c) sums[r] = add_chunk(sums[r], chunks[r][c], levels[q] + 2 * c * kChunkBytes);
        else
          for (size_t c = 0; c < stride; c += kChunkBytes)
            sums[r] = add_chunk(sums[r], unpacked(row[r] + c), levels[q] + 2 * c);
      }
      const __m256 middle = _mm256_set1_ps(middles[q]);
      const __m256 eight = _mm256_mul_ps(step, _mm256_sub_ps(_mm256_cvtepi32_ps(sum_lanes(sums)), middle));
      _mm256_mask_storeu_ps(scores + q * apart + i, there, eight);
    }
  }
}

void score(const uint8_t* rows, size_t stride, const float* steps, const int8_t* const* levels, const float* middles,
           size_t queries, const int32_t* ids, size_t count, float* scores, size_t apart) {
  const auto of_stride = stride == 32 ? score_of<32> : stride == 64 ? score_of<64> : score_of<0>;
  of_stride(rows, stride, steps, levels, middles, queries, ids, count, scores, apart);
}

size_t keep_good(float least, size_t count, const int32_t* ids, const float* scores, int32_t* good_ids,
                 float* good_scores) {
  size_t good = 0;
  for (size_t i = 0; i < count; i += 16) {
    const auto there = static_cast<__mmask16>(count - i < 16 ? (1u << (count - i)) - 1 : 0xffffu);
    const __m512 some = _mm512_maskz_loadu_ps(there, scores + i);
    const __m512i whose = _mm512_maskz_loadu_epi32(there, ids + i);
    const __mmask16 keep = _mm512_mask_cmp_ps_mask(there, some, _mm512_set1_ps(least), _CMP_NLT_UQ);
    const auto kept = static_cast<unsigned>(__builtin_popcount(keep));
    // Compressed in a register: storing while compressing is slow on Zen 4.
    const auto first = static_cast<__mmask16>((1u << kept) - 1);
    _mm512_mask_storeu_ps(good_scores + good, first, _mm512_maskz_compress_ps(keep, some));
    _mm512_mask_storeu_epi32(good_ids + good, first, _mm512_maskz_compress_epi32(keep, whose));
    good += kept;
  }
  return good;
}

// W is width where the compiler shall know it, 0 for any.
template <size_t W>
void dot_bytes_of(const uint8_t* rows, size_t any_width, int32_t by, const int32_t* ids, size_t count, float* dots) {
  const size_t width = W ? W : any_width;
  const __m512i middle = _mm512_set1_epi8(static_cast<char>(kMiddleByte));
  const uint8_t* query = rows + static_cast<size_t>(by) * width;
  // Rows are taken as they are, without a sign: that adds kMiddleByte times the sum of the query.
  const auto signed_query = [&](size_t j) { return _mm512_xor_si512(_mm512_loadu_si512(query + j), middle); };
  __m512i total = _mm512_setzero_si512();
  for (size_t j = 0; j < width; j += 64) total = _mm512_dpbusd_epi32(total, middle, signed_query(j));
  const __m256i excess = _mm256_set1_epi32(_mm512_reduce_add_epi32(total));
  for (size_t i = 0; i < count && i < kAhead; ++i) fetch(rows + static_cast<size_t>(ids[i]) * width, width);
  for (size_t i = 0; i < count; i += kTogether) {
    for (size_t r = i + kAhead; r < count && r < i + kAhead + kTogether; ++r)
      fetch(rows + static_cast<size_t>(ids[r]) * width, width);
    const size_t last = count - 1;
    __m256i sums[kTogether];
    for (size_t r = 0; r < kTogether; ++r) {
      const uint8_t* row = rows + static_cast<size_t>(ids[i + r < last ? i + r : last]) * width;
      __m512i sum = _mm512_setzero_si512();
      for (size_t j = 0; j < width; j += 64)
        sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(row + j), signed_query(j));
      sums[r] = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
    }
    const __m256 eight = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum_lanes(sums), excess));
    if (i + kTogether <= count) _mm256_storeu_ps(dots + i, eight);
    else _mm256_mask_storeu_ps(dots + i, static_cast<__mmask8>((1u << (count - i)) - 1), eight);
  }
}

void dot_bytes(const uint8_t* rows, size_t width, int32_t by, const int32_t* ids, size_t count, float* dots) {
  switch (width) {
    case 64: return dot_bytes_of<64>(rows, width, by, ids, count, dots);
    case 128: return dot_bytes_of<128>(rows, width, by, ids, count, dots);
    default: return dot_bytes_of<0>(rows, width, by, ids, count, dots);
  }
}

bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const CodeKernels* codes_avx512vnni() {
  static const CodeKernels table = {"avx512vnni", supported, score, keep_good, dot_bytes};
  return &table;
}

}  // namespace ra_bench

#else

namespace ra_bench {
const CodeKernels* codes_avx512vnni() { return nullptr; }
}  // namespace ra_bench

#endif
