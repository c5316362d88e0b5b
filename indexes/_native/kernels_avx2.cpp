// The kernels for x86 CPUs with AVX2, FMA and F16C (Haswell 2013, Zen 2017, and later).
//
// Trap: this file alone is compiled with those flags. An inline function of a shared header that is not
// inlined here could be the copy that the linker keeps for everybody; so it includes no header with code
// beyond kernels.hpp's one-liners, and everything here is in an anonymous namespace.

#include "kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace ra_bench {
namespace {

constexpr size_t kAhead = 8;  // rows between a prefetch and its use

inline __m256 load8(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
inline float load1(const uint16_t* p) { return _cvtsh_ss(*p); }
inline float load1(const float* p) { return *p; }

template <class T>
inline void prefetch_at(const T* row, size_t d) {
  const char* p = reinterpret_cast<const char*>(row);
  for (size_t offset = 0; offset < d * sizeof(T); offset += 64) _mm_prefetch(p + offset, _MM_HINT_T0);
}

// The sums of four vectors' lanes.
inline __m128 sum_lanes(__m256 a, __m256 b, __m256 c, __m256 d) {
  __m256 ab = _mm256_hadd_ps(a, b), cd = _mm256_hadd_ps(c, d);
  __m256 all = _mm256_hadd_ps(ab, cd);
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

// D is d where the compiler shall know it (the query then stays in registers), 0 for any.
template <class T, size_t D>
void dot_rows_of(const float* query, const void* rows, const int32_t* ids, size_t count, size_t any_d,
                 float* scores) {
  const size_t d = D ? D : any_d;
  const size_t whole = d & ~size_t{7};
  const T* data = static_cast<const T*>(rows);
  for (size_t i = 0; i < count && i < kAhead; ++i) prefetch_at(data + ids[i] * d, d);
  for (size_t i = 0; i < count; i += 4) {
    for (size_t r = i + kAhead; r < count && r < i + kAhead + 4; ++r) prefetch_at(data + ids[r] * d, d);
    // A last block of fewer than four repeats its last row: cheaper than a second loop.
    const size_t last = count - 1;
    const T* row0 = data + ids[i] * d;
    const T* row1 = data + ids[i + 1 < last ? i + 1 : last] * d;
    const T* row2 = data + ids[i + 2 < last ? i + 2 : last] * d;
    const T* row3 = data + ids[i + 3 < last ? i + 3 : last] * d;
    __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    for (size_t j = 0; j < whole; j += 8) {
      const __m256 q = _mm256_loadu_ps(query + j);
      sum0 = _mm256_fmadd_ps(q, load8(row0 + j), sum0);
      sum1 = _mm256_fmadd_ps(q, load8(row1 + j), sum1);
      sum2 = _mm256_fmadd_ps(q, load8(row2 + j), sum2);
      sum3 = _mm256_fmadd_ps(q, load8(row3 + j), sum3);
    }
    float four[4];
    _mm_storeu_ps(four, sum_lanes(sum0, sum1, sum2, sum3));
    for (size_t j = whole; j < d; ++j) {
      four[0] += query[j] * load1(row0 + j);
      four[1] += query[j] * load1(row1 + j);
      four[2] += query[j] * load1(row2 + j);
      four[3] += query[j] * load1(row3 + j);
    }
    if (i + 4 <= count) {
      _mm_storeu_ps(scores + i, _mm_loadu_ps(four));
    } else {
      for (size_t r = 0; i + r < count; ++r) scores[i + r] = four[r];
    }
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

// Columns [from, from + 8 * B) of all rows, their sums in registers.
template <class T, int B>
void add_columns(const float* weights, const T* data, const int32_t* ids, size_t count, size_t d, size_t from,
                 float* out) {
  __m256 sums[B];
  for (int b = 0; b < B; ++b) sums[b] = _mm256_loadu_ps(out + from + 8 * b);
  for (size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prefetch_at(data + ids[i + kAhead] * d + from, 8 * B);
    const T* row = data + ids[i] * d + from;
    const __m256 w = _mm256_set1_ps(weights[i]);
    for (int b = 0; b < B; ++b) sums[b] = _mm256_fmadd_ps(w, load8(row + 8 * b), sums[b]);
  }
  for (int b = 0; b < B; ++b) _mm256_storeu_ps(out + from + 8 * b, sums[b]);
}

template <class T>
void add_rows(const float* weights, const void* rows, const int32_t* ids, size_t count, size_t d,
              float* out) {
  const T* data = static_cast<const T*>(rows);
  size_t j = 0;
  for (; j + 64 <= d; j += 64) add_columns<T, 8>(weights, data, ids, count, d, j, out);
  for (; j + 16 <= d; j += 16) add_columns<T, 2>(weights, data, ids, count, d, j, out);
  for (; j + 8 <= d; j += 8) add_columns<T, 1>(weights, data, ids, count, d, j, out);
  for (; j < d; ++j)
    for (size_t i = 0; i < count; ++i) out[j] += weights[i] * load1(data + ids[i] * d + j);
}

template <class T>
void widen(const void* row, size_t d, float* out) {
  const T* p = static_cast<const T*>(row);
  size_t j = 0;
  for (; j + 8 <= d; j += 8) _mm256_storeu_ps(out + j, load8(p + j));
  for (; j < d; ++j) out[j] = load1(p + j);
}

// exp(x) for x <= 0: 2^n by the exponent bits, the rest by a polynomial (the usual Cephes expf, 2 ulp).
inline __m256 exp8(__m256 x) {
  const __m256 tiny = _mm256_set1_ps(-87.3f);               // below, the result would be subnormal: 0
  const __m256 keep = _mm256_cmp_ps(x, tiny, _CMP_NLT_UQ);  // true for NaN too, which then stays NaN
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_fmadd_ps(y, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(power)), keep);
}

float exp_sum(float* x, size_t count, float shift) {
  const __m256 by = _mm256_set1_ps(shift);
  __m256 sums = _mm256_setzero_ps();
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 y = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), by));
    _mm256_storeu_ps(x + i, y);
    sums = _mm256_add_ps(sums, y);
  }
  float rest[8] = {};
  if (i < count) {
    float in[8];
    for (size_t r = 0; r < 8; ++r) in[r] = i + r < count ? x[i + r] : shift;
    _mm256_storeu_ps(rest, exp8(_mm256_sub_ps(_mm256_loadu_ps(in), by)));
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, sums);
  float sum = 0;
  for (float lane : lanes) sum += lane;
  for (size_t r = 0; i + r < count; ++r) sum += x[i + r] = rest[r];
  return sum;
}

bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels table = {
      "avx2",
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
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace ra_bench

#endif
