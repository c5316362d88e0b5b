// The kernels for x86 CPUs with AVX-512 F, BW, DQ and VL (Skylake-SP 2017, Zen 4 2022, and later).
// Compiled with flags of its own: see the trap in kernels_avx2.cpp, which holds here too. What was measured
// stands in NOTES.md.

#include "kernels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include <immintrin.h>

namespace ra_bench {
namespace {

constexpr size_t kStep = 8;    // rows scored at once
constexpr size_t kAhead = 12;  // rows between a prefetch and its use

inline __m512 load16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 load16(const float* p) { return _mm512_loadu_ps(p); }

// The first numbers of 16, as many as the mask has bits; the others are 0 and are not touched.
inline __m512 load_some(__mmask16 some, const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, p));
}
inline __m512 load_some(__mmask16 some, const float* p) { return _mm512_maskz_loadu_ps(some, p); }
inline __mmask16 mask_of(size_t count) { return static_cast<__mmask16>((1u << count) - 1); }

// `straddles`: rows do not begin on a cache line, so each ends on one more.
template <class T>
inline void prefetch_at(const T* row, size_t d, bool straddles) {
  const char* p = reinterpret_cast<const char*>(row);
  for (size_t offset = 0; offset < d * sizeof(T); offset += 64) _mm_prefetch(p + offset, _MM_HINT_T0);
  if (straddles) _mm_prefetch(p + d * sizeof(T) - 1, _MM_HINT_T0);
}

inline bool rows_straddle(const void* rows, size_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(rows) | row_bytes) % 64 != 0;
}

// Four numbers in each quarter: the quarter's sums of four vectors.
inline __m512 sum_quarters(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
}

// The sums of eight vectors' lanes.
inline __m256 sum_lanes(const __m512* v) {
  const __m512 low = sum_quarters(v[0], v[1], v[2], v[3]), high = sum_quarters(v[4], v[5], v[6], v[7]);
  const __m512 halves =
      _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x44), _mm512_shuffle_f32x4(low, high, 0xee));
  return _mm512_castps512_ps256(_mm512_add_ps(_mm512_shuffle_f32x4(halves, halves, 0x08),
                                              _mm512_shuffle_f32x4(halves, halves, 0x0d)));
}

// D is d where the compiler shall know it (the query then stays in registers), 0 for any.
template <class T, size_t D>
void dot_rows_of(const float* query, const void* rows, const int32_t* ids, size_t count, size_t any_d,
                 float* scores) {
  const size_t d = D ? D : any_d;
  const size_t whole = d & ~size_t{15};
  const __mmask16 rest = mask_of(d - whole);
  const T* data = static_cast<const T*>(rows);
  const bool straddles = rows_straddle(rows, d * sizeof(T));
  for (size_t i = 0; i < count && i < kAhead; ++i) prefetch_at(data + ids[i] * d, d, straddles);
  for (size_t i = 0; i < count; i += kStep) {
    for (size_t r = i + kAhead; r < count && r < i + kAhead + kStep; ++r)
      prefetch_at(data + ids[r] * d, d, straddles);
    // A last block of fewer rows repeats its last one: cheaper than a second loop.
    const size_t last = count - 1;
    const T* row[kStep];
    for (size_t r = 0; r < kStep; ++r) row[r] = data + ids[i + r < last ? i + r : last] * d;
    __m512 sums[kStep];
    for (size_t r = 0; r < kStep; ++r) sums[r] = _mm512_setzero_ps();
    for (size_t j = 0; j < whole; j += 16) {
      const __m512 q = _mm512_loadu_ps(query + j);
      for (size_t r = 0; r < kStep; ++r) sums[r] = _mm512_fmadd_ps(q, load16(row[r] + j), sums[r]);
    }
    if (rest) {
      const __m512 q = load_some(rest, query + whole);
      for (size_t r = 0; r < kStep; ++r)
        sums[r] = _mm512_fmadd_ps(q, load_some(rest, row[r] + whole), sums[r]);
    }
    const __m256 eight = sum_lanes(sums);
    if (i + kStep <= count) _mm256_storeu_ps(scores + i, eight);
    else _mm256_mask_storeu_ps(scores + i, static_cast<__mmask8>(mask_of(count - i)), eight);
  }
}

template <class T>
void dot_rows(const float* query, const void* rows, const int32_t* ids, size_t count, size_t d,
              float* scores) {
  switch (d) {
    case 64: return dot_rows_of<T, 64>(query, rows, ids, count, d, scores);
    case 80: return dot_rows_of<T, 80>(query, rows, ids, count, d, scores);
    case 96: return dot_rows_of<T, 96>(query, rows, ids, count, d, scores);
    case 128: return dot_rows_of<T, 128>(query, rows, ids, count, d, scores);
    case 256: return dot_rows_of<T, 256>(query, rows, ids, count, d, scores);
    default: return dot_rows_of<T, 0>(query, rows, ids, count, d, scores);
  }
}

// Columns [from, from + 16 * B) of all rows; even and odd rows have sums of their own, in registers, so that
// an addition need not wait for the one before it.
template <class T, int B>
void add_columns(const float* weights, const T* data, const int32_t* ids, size_t count, size_t d, size_t from,
                 float* out) {
  __m512 even[B], odd[B];
  for (int b = 0; b < B; ++b) {
    even[b] = _mm512_loadu_ps(out + from + 16 * b);
    odd[b] = _mm512_setzero_ps();
  }
  const bool straddles = rows_straddle(data, d * sizeof(T));
  for (size_t i = 0; i < count && i < kAhead; ++i) prefetch_at(data + ids[i] * d + from, 16 * B, straddles);
  size_t i = 0;
  for (; i + 2 <= count; i += 2) {
    for (size_t r = i + kAhead; r < count && r < i + kAhead + 2; ++r)
      prefetch_at(data + ids[r] * d + from, 16 * B, straddles);
    const T* row0 = data + ids[i] * d + from;
    const T* row1 = data + ids[i + 1] * d + from;
    const __m512 w0 = _mm512_set1_ps(weights[i]), w1 = _mm512_set1_ps(weights[i + 1]);
    for (int b = 0; b < B; ++b) even[b] = _mm512_fmadd_ps(w0, load16(row0 + 16 * b), even[b]);
    for (int b = 0; b < B; ++b) odd[b] = _mm512_fmadd_ps(w1, load16(row1 + 16 * b), odd[b]);
  }
  if (i < count) {
    const T* row = data + ids[i] * d + from;
    const __m512 w = _mm512_set1_ps(weights[i]);
    for (int b = 0; b < B; ++b) even[b] = _mm512_fmadd_ps(w, load16(row + 16 * b), even[b]);
  }
  for (int b = 0; b < B; ++b) _mm512_storeu_ps(out + from + 16 * b, _mm512_add_ps(even[b], odd[b]));
}

template <class T>
void add_rows(const float* weights, const void* rows, const int32_t* ids, size_t count, size_t d,
              float* out) {
  const T* data = static_cast<const T*>(rows);
  size_t j = 0;
  for (; j + 128 <= d; j += 128) add_columns<T, 8>(weights, data, ids, count, d, j, out);
  for (; j + 64 <= d; j += 64) add_columns<T, 4>(weights, data, ids, count, d, j, out);
  for (; j + 16 <= d; j += 16) add_columns<T, 1>(weights, data, ids, count, d, j, out);
  if (j == d) return;
  const __mmask16 rest = mask_of(d - j);
  __m512 sum = load_some(rest, out + j);
  for (size_t i = 0; i < count; ++i)
    sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[i]), load_some(rest, data + ids[i] * d + j), sum);
  _mm512_mask_storeu_ps(out + j, rest, sum);
}

template <class T>
void widen(const void* row, size_t d, float* out) {
  const T* p = static_cast<const T*>(row);
  size_t j = 0;
  for (; j + 16 <= d; j += 16) _mm512_storeu_ps(out + j, load16(p + j));
  if (j < d) _mm512_mask_storeu_ps(out + j, mask_of(d - j), load_some(mask_of(d - j), p + j));
}

// exp(x) for x <= 0: 2^n times a polynomial of the rest (the usual Cephes expf, 2 ulp).
inline __m512 exp16(__m512 x) {
  const __m512 tiny = _mm512_set1_ps(-87.3f);                      // below, the result would be subnormal: 0
  const __mmask16 keep = _mm512_cmp_ps_mask(x, tiny, _CMP_NLT_UQ);  // true for NaN too, which then stays NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_maskz_scalef_ps(keep, y, n);
}

float exp_sum(float* x, size_t count, float shift) {
  const __m512 by = _mm512_set1_ps(shift);
  __m512 sums = _mm512_setzero_ps();
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512 y = exp16(_mm512_sub_ps(_mm512_loadu_ps(x + i), by));
    _mm512_storeu_ps(x + i, y);
    sums = _mm512_add_ps(sums, y);
  }
  if (i < count) {
    const __mmask16 some = mask_of(count - i);
    const __m512 y = _mm512_maskz_mov_ps(some, exp16(_mm512_sub_ps(load_some(some, x + i), by)));
    _mm512_mask_storeu_ps(x + i, some, y);
    sums = _mm512_add_ps(sums, y);
  }
  return _mm512_reduce_add_ps(sums);
}

bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

const Kernels* avx512_kernels() {
  static const Kernels table = {
      "avx512",
      supported,
      {dot_rows<uint16_t>, dot_rows<float>},
      {add_rows<uint16_t>, add_rows<float>},
      {widen<uint16_t>, widen<float>},
      exp_sum,
  };
  return &table;
}

}  // namespace ra_bench

#else

namespace ra_bench {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace ra_bench

#endif
