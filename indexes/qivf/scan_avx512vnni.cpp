// The loops of scan.hpp for CPUs with AVX-512 and its VNNI (Cascade Lake 2019, Zen 4 2022, and later). The
// trap of kernels_avx2.cpp holds here too: everything in an anonymous namespace.

#include "scan.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

#include <immintrin.h>

namespace ra_bench {
namespace {

inline __m512i four_bytes(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

inline __mmask16 first_lanes(size_t left) {
  return static_cast<__mmask16>(left < 16 ? (1u << left) - 1 : 0xffffu);
}

template <size_t Q>
void scan_together(const Segment& segment, size_t slices, const Scanner* queries) {
  const __m512i low = _mm512_set1_epi8(15);
  const uint8_t* codes = segment.codes;
  const int8_t* q[Q];
  float* scores_end[Q];  // where the next good score goes; local, so that stores do not force reloads
  int32_t* ids_end[Q];
  for (size_t g = 0; g < Q; ++g) {
    q[g] = queries[g].q;
    scores_end[g] = queries[g].found->scores + queries[g].found->size;
    ids_end[g] = queries[g].found->ids + queries[g].found->size;
  }
  for (size_t first = 0; first < segment.count; first += kBlockKeys, codes += slices * kSliceBytes) {
    __m512i sums[Q];
    for (size_t g = 0; g < Q; ++g) sums[g] = _mm512_setzero_si512();
    for (size_t t = 0; t < slices; ++t) {
      const __m512i both = _mm512_loadu_si512(codes + t * kSliceBytes);
      const __m512i one = _mm512_and_si512(both, low);
      const __m512i two = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      for (size_t g = 0; g < Q; ++g) {
        sums[g] = _mm512_dpbusd_epi32(sums[g], one, four_bytes(q[g] + t * 8));
        sums[g] = _mm512_dpbusd_epi32(sums[g], two, four_bytes(q[g] + t * 8 + 4));
      }
    }
    const __mmask16 inside = first_lanes(segment.count - first);
    const __m512 steps = _mm512_loadu_ps(segment.steps + first);
    for (size_t g = 0; g < Q; ++g) {
      const __m512 dots = _mm512_sub_ps(_mm512_cvtepi32_ps(sums[g]), _mm512_set1_ps(queries[g].middle));
      const __m512 scores = _mm512_fmadd_ps(dots, _mm512_mul_ps(steps, _mm512_set1_ps(queries[g].scale)),
                                            _mm512_set1_ps(queries[g].base));
      const __mmask16 good =
          _mm512_mask_cmp_ps_mask(inside, scores, _mm512_set1_ps(queries[g].found->threshold), _CMP_GT_OQ);
      if (!good) continue;
      // Compressed in a register and stored whole: a masked store to memory takes many times as long.
      _mm512_storeu_ps(scores_end[g], _mm512_maskz_compress_ps(good, scores));
      _mm512_storeu_si512(ids_end[g],
                          _mm512_maskz_compress_epi32(good, _mm512_loadu_si512(segment.ids + first)));
      const int count = __builtin_popcount(good);
      scores_end[g] += count;
      ids_end[g] += count;
    }
  }
  for (size_t g = 0; g < Q; ++g)
    queries[g].found->size = static_cast<size_t>(scores_end[g] - queries[g].found->scores);
}

void scan_segment(const Segment& segment, size_t slices, const Scanner* queries, size_t count) {
  switch (count) {
    case 1: return scan_together<1>(segment, slices, queries);
    case 2: return scan_together<2>(segment, slices, queries);
    case 3: return scan_together<3>(segment, slices, queries);
    case 4: return scan_together<4>(segment, slices, queries);
    case 5: return scan_together<5>(segment, slices, queries);
    case 6: return scan_together<6>(segment, slices, queries);
    case 7: return scan_together<7>(segment, slices, queries);
    default: return scan_together<8>(segment, slices, queries);
  }
}

template <size_t Q>
void panels_together(const float* panels, const float* bias, size_t num_panels, size_t d,
                     const float* const* queries, float* const* out) {
  for (size_t p = 0; p < num_panels; ++p) {
    __m512 sums[Q];
    for (size_t g = 0; g < Q; ++g) sums[g] = _mm512_loadu_ps(bias + p * 16);
    const float* panel = panels + p * d * 16;
    for (size_t j = 0; j < d; ++j) {
      const __m512 column = _mm512_loadu_ps(panel + j * 16);
      for (size_t g = 0; g < Q; ++g)
        sums[g] = _mm512_fmadd_ps(column, _mm512_set1_ps(queries[g][j]), sums[g]);
    }
    for (size_t g = 0; g < Q; ++g) _mm512_storeu_ps(out[g] + p * 16, sums[g]);
  }
}

void panel_scores(const float* panels, const float* bias, size_t num_panels, size_t d,
                  const float* const* queries, size_t count, float* const* out) {
  switch (count) {
    case 1: return panels_together<1>(panels, bias, num_panels, d, queries, out);
    case 2: return panels_together<2>(panels, bias, num_panels, d, queries, out);
    case 3: return panels_together<3>(panels, bias, num_panels, d, queries, out);
    case 4: return panels_together<4>(panels, bias, num_panels, d, queries, out);
    case 5: return panels_together<5>(panels, bias, num_panels, d, queries, out);
    case 6: return panels_together<6>(panels, bias, num_panels, d, queries, out);
    case 7: return panels_together<7>(panels, bias, num_panels, d, queries, out);
    default: return panels_together<8>(panels, bias, num_panels, d, queries, out);
  }
}

float sum_from(const float* key, const float* weight, size_t count, float threshold) {
  const __m512 least = _mm512_set1_ps(threshold);
  __m512 sums = _mm512_setzero_ps();
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 in = _mm512_cmp_ps_mask(_mm512_loadu_ps(key + i), least, _CMP_GE_OQ);
    sums = _mm512_mask_add_ps(sums, in, sums, _mm512_loadu_ps(weight + i));
  }
  return _mm512_reduce_add_ps(sums);
}

size_t count_from(const float* x, size_t count, float threshold) {
  const __m512 least = _mm512_set1_ps(threshold);
  size_t found = 0;
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 all = _mm512_maskz_loadu_ps(lanes, x + i);
    found += static_cast<size_t>(__builtin_popcount(_mm512_mask_cmp_ps_mask(lanes, all, least, _CMP_GE_OQ)));
  }
  return found;
}

size_t compress(float* scores, int32_t* ids, size_t count, float threshold) {
  const __m512 least = _mm512_set1_ps(threshold);
  size_t kept = 0;
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 all = _mm512_maskz_loadu_ps(lanes, scores + i);
    const __m512i names = _mm512_maskz_loadu_epi32(lanes, ids + i);
    const __mmask16 good = _mm512_mask_cmp_ps_mask(lanes, all, least, _CMP_GE_OQ);
    _mm512_storeu_ps(scores + kept, _mm512_maskz_compress_ps(good, all));  // never past what was read
    _mm512_storeu_si512(ids + kept, _mm512_maskz_compress_epi32(good, names));
    kept += static_cast<size_t>(__builtin_popcount(good));
  }
  return kept;
}

size_t find_from(const float* x, size_t count, float threshold, int32_t* places) {
  const __m512 least = _mm512_set1_ps(threshold);
  __m512i here = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  size_t found = 0;
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 in = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), least, _CMP_GE_OQ);
    _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(in, here));
    found += static_cast<size_t>(__builtin_popcount(in));
    here = _mm512_add_epi32(here, _mm512_set1_epi32(16));
  }
  return found;
}

void range(const float* x, size_t count, float* smallest, float* largest) {
  __m512 lows = _mm512_set1_ps(x[0]), highs = lows;
  for (size_t i = 0; i < count; i += 16) {
    const __m512 some = _mm512_mask_loadu_ps(lows, first_lanes(count - i), x + i);
    lows = _mm512_min_ps(lows, some);
    highs = _mm512_mask_max_ps(highs, first_lanes(count - i), highs, some);
  }
  *smallest = _mm512_reduce_min_ps(lows);
  *largest = _mm512_reduce_max_ps(highs);
}

// Ranks of 32 scores at a time, in registers.
void rank(const float* scores, size_t count, int32_t* ranks) {
  const __m512i one = _mm512_set1_epi32(1);
  for (size_t i = 0; i < count; i += 32) {
    const size_t left = count - i;
    const __mmask16 lanes0 = first_lanes(left), lanes1 = left > 16 ? first_lanes(left - 16) : __mmask16{0};
    const __m512 mine0 = _mm512_maskz_loadu_ps(lanes0, scores + i);
    const __m512 mine1 = _mm512_maskz_loadu_ps(lanes1, scores + i + 16);
    __m512i larger0 = _mm512_setzero_si512(), larger1 = larger0;
    for (size_t j = 0; j < count; ++j) {
      const __m512 other = _mm512_set1_ps(scores[j]);
      larger0 = _mm512_mask_add_epi32(larger0, _mm512_cmp_ps_mask(other, mine0, _CMP_GT_OQ), larger0, one);
      larger1 = _mm512_mask_add_epi32(larger1, _mm512_cmp_ps_mask(other, mine1, _CMP_GT_OQ), larger1, one);
    }
    _mm512_mask_storeu_epi32(ranks + i, lanes0, larger0);
    _mm512_mask_storeu_epi32(ranks + i + 16, lanes1, larger1);
  }
}

bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const ScanKernels* scan_avx512vnni() {
  static const ScanKernels table = {"avx512vnni", supported,  scan_segment, panel_scores, sum_from,
                                    count_from,   compress,   find_from,    range,        rank};
  return &table;
}

}  // namespace ra_bench

#else

namespace ra_bench {
const ScanKernels* scan_avx512vnni() { return nullptr; }
}  // namespace ra_bench

#endif
