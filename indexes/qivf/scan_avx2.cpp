// The loops of scan.hpp for CPUs with AVX2. The trap of kernels_avx2.cpp holds here too: everything in an
// anonymous namespace.

#include "scan.hpp"

#if defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

namespace ra_bench {
namespace {

#include "scan_plain.inl"

// The codes of 8 keys (half a block) against Q queries, sums in registers.
template <size_t Q>
void half_block(const uint8_t* codes, size_t slices, const Scanner* queries, __m256i* sums) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  for (size_t g = 0; g < Q; ++g) sums[g] = _mm256_setzero_si256();
  for (size_t t = 0; t < slices; ++t) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + t * kSliceBytes));
    const __m256i first = _mm256_and_si256(both, low);
    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    for (size_t g = 0; g < Q; ++g) {
      int32_t four[2];
      __builtin_memcpy(four, queries[g].q + t * 8, 8);
      // At most 2 * 15 * 127 a pair: 16 bits hold the sum of both products.
      const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(first, _mm256_set1_epi32(four[0])),
                                             _mm256_maddubs_epi16(second, _mm256_set1_epi32(four[1])));
      sums[g] = _mm256_add_epi32(sums[g], _mm256_madd_epi16(pairs, ones));
    }
  }
}

template <size_t Q>
void scan_together(const Segment& segment, size_t slices, const Scanner* queries) {
  for (size_t first = 0; first < segment.count; first += 8) {
    const uint8_t* block = segment.codes + first / kBlockKeys * slices * kSliceBytes;
    __m256i sums[Q];
    half_block<Q>(block + first % kBlockKeys * 4, slices, queries, sums);
    const size_t keys = segment.count - first;
    const int inside = keys < 8 ? (1 << keys) - 1 : 255;
    for (size_t g = 0; g < Q; ++g) {
      const Scanner& query = queries[g];
      const __m256 steps = _mm256_mul_ps(_mm256_loadu_ps(segment.steps + first), _mm256_set1_ps(query.scale));
      const __m256 dots = _mm256_sub_ps(_mm256_cvtepi32_ps(sums[g]), _mm256_set1_ps(query.middle));
      const __m256 scores = _mm256_fmadd_ps(dots, steps, _mm256_set1_ps(query.base));
      Candidates& found = *query.found;
      int good = inside & _mm256_movemask_ps(
                              _mm256_cmp_ps(scores, _mm256_set1_ps(found.threshold), _CMP_GT_OQ));
      if (!good) continue;
      float all[8];
      _mm256_storeu_ps(all, scores);
      for (; good; good &= good - 1) {
        const int i = __builtin_ctz(static_cast<unsigned>(good));
        found.scores[found.size] = all[i];
        found.ids[found.size++] = segment.ids[first + static_cast<size_t>(i)];
      }
    }
  }
}

void scan_up_to_four(const Segment& segment, size_t slices, const Scanner* queries, size_t count) {
  switch (count) {
    case 1: return scan_together<1>(segment, slices, queries);
    case 2: return scan_together<2>(segment, slices, queries);
    case 3: return scan_together<3>(segment, slices, queries);
    default: return scan_together<4>(segment, slices, queries);
  }
}

void scan_avx2_segment(const Segment& segment, size_t slices, const Scanner* queries, size_t count) {
  for (size_t g = 0; g < count; g += 4)  // 16 registers: four queries at a time
    scan_up_to_four(segment, slices, queries + g, count - g < 4 ? count - g : 4);
}

// By hand: GCC 12 at -O3 vectorises the plain loop wrongly for AVX2.
float sum_from(const float* key, const float* weight, size_t count, float threshold) {
  const __m256 least = _mm256_set1_ps(threshold);
  __m256 sums = _mm256_setzero_ps();
  for (size_t i = 0; i < count; i += 8) {
    const __m256 in = _mm256_cmp_ps(_mm256_loadu_ps(key + i), least, _CMP_GE_OQ);
    sums = _mm256_add_ps(sums, _mm256_and_ps(in, _mm256_loadu_ps(weight + i)));
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, sums);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

size_t count_from(const float* x, size_t count, float threshold) {
  const __m256 least = _mm256_set1_ps(threshold);
  size_t found = 0, i = 0;
  for (; i + 8 <= count; i += 8) {
    const int in = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), least, _CMP_GE_OQ));
    found += static_cast<size_t>(__builtin_popcount(static_cast<unsigned>(in)));
  }
  for (; i < count; ++i) found += x[i] >= threshold;
  return found;
}

void range(const float* x, size_t count, float* smallest, float* largest) {
  float low = x[0], high = x[0];
  size_t i = 0;
  if (count >= 8) {
    __m256 lows = _mm256_loadu_ps(x), highs = lows;
    for (i = 8; i + 8 <= count; i += 8) {
      lows = _mm256_min_ps(lows, _mm256_loadu_ps(x + i));
      highs = _mm256_max_ps(highs, _mm256_loadu_ps(x + i));
    }
    float lanes[16];
    _mm256_storeu_ps(lanes, lows);
    _mm256_storeu_ps(lanes + 8, highs);
    plain_range(lanes, 8, &low, largest);
    plain_range(lanes + 8, 8, smallest, &high);
  }
  for (; i < count; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  *smallest = low;
  *largest = high;
}

bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

const ScanKernels* scan_avx2() {
  static const ScanKernels table = {"avx2",   supported,   scan_avx2_segment, plain_panel_scores,
                                    sum_from, count_from,  plain_compress,    plain_find_from,
                                    range,    plain_rank};
  return &table;
}

}  // namespace ra_bench

#else

namespace ra_bench {
const ScanKernels* scan_avx2() { return nullptr; }
}  // namespace ra_bench

#endif
