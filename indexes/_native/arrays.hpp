// NumPy arrays from Python, checked by hand: a wrong type is a ValueError that names the argument, where
// nanobind's own casting would raise TypeError and list signatures.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace ra_bench {

namespace nb = nanobind;
using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using Writable = nb::ndarray<nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

template <class AnyArray>
bool is_float(const AnyArray& a, int bits) {
  return a.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && a.dtype().bits == bits;
}
inline bool is_int32(const Array& a) {
  return a.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int) && a.dtype().bits == 32;
}
inline bool is_uint8(const Array& a) {
  return a.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt) && a.dtype().bits == 8;
}

template <class AnyArray>
bool is_contiguous(const AnyArray& a) {
  int64_t step = 1;
  for (size_t i = a.ndim(); i-- > 0; step *= static_cast<int64_t>(a.shape(i)))
    if (a.shape(i) != 1 && a.stride(i) != step && a.size()) return false;
  return true;
}

// (n, d) float16 or float32, C-contiguous.
inline Rows rows_of(const char* name, const Array& a) {
  if (a.ndim() != 2)
    refuse(std::string(name) + " must be (n, d), got " + std::to_string(a.ndim()) + " dimensions");
  if (!is_float(a, 16) && !is_float(a, 32)) refuse(std::string(name) + " must be float16 or float32");
  if (!is_contiguous(a)) refuse(std::string(name) + " must be C-contiguous");
  return {a.data(), is_float(a, 16) ? kFloat16 : kFloat32, a.shape(0), a.shape(1)};
}

// A (m, columns) array of 4-byte items that may have strides: read in place where it has none, else copied.
template <class T>
class Matrix {
 public:
  Matrix(const char* name, const Array& a) : m(0), columns(0) {
    constexpr bool floats = std::is_same<T, float>::value;
    if (a.ndim() != 2) refuse(std::string(name) + " must have 2 dimensions, got " + std::to_string(a.ndim()));
    if (floats ? !is_float(a, 32) : !is_int32(a))
      refuse(std::string(name) + (floats ? " must be float32" : " must be int32"));
    m = a.shape(0);
    columns = a.shape(1);
    data = static_cast<const T*>(a.data());
    if (is_contiguous(a)) return;
    copy_.resize(m * columns);
    for (size_t i = 0; i < m; ++i)
      for (size_t j = 0; j < columns; ++j)
        copy_[i * columns + j] =
            data[static_cast<int64_t>(i) * a.stride(0) + static_cast<int64_t>(j) * a.stride(1)];
    data = copy_.data();
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  const T* row(size_t i) const { return data + i * columns; }
  size_t m, columns;
  const T* data;

 private:
  std::vector<T> copy_;
};

// Refuses queries (m, d) that are not as wide as the keys.
inline void check_queries(size_t d, const Rows& keys) {
  if (d != keys.d)
    refuse("queries must be (m, " + std::to_string(keys.d) + ") as the keys are, got d " + std::to_string(d));
}

// The queries (heads, m, d) of a layer and where their answers go, checked.
struct LayerQueries {
  LayerQueries(const Array& asked, const Writable& output_array, const Writable& lse_array) {
    if (asked.ndim() != 3 || !is_float(asked, 32) || !is_contiguous(asked))
      refuse("queries must be (H, G, d) float32, C-contiguous");
    heads = asked.shape(0), m = asked.shape(1), d = asked.shape(2);
    if (output_array.ndim() != 3 || output_array.shape(0) != heads || output_array.shape(1) != m ||
        output_array.shape(2) != d || !is_float(output_array, 32) || !is_contiguous(output_array))
      refuse("output must have the shape of queries, be float32 and C-contiguous");
    if (lse_array.ndim() != 2 || lse_array.shape(0) != heads || lse_array.shape(1) != m ||
        !is_float(lse_array, 32) || !is_contiguous(lse_array))
      refuse("lse must be (H, G) as queries (H, G, d) are, float32 and C-contiguous");
    queries = static_cast<const float*>(asked.data());
    output = static_cast<float*>(output_array.data());
    lse = static_cast<float*>(lse_array.data());
  }
  // Refuses keys that are not as wide as the queries, and values that are not a row for each key.
  void check_head(const Rows& keys, const Rows& values) const {
    if (keys.d != d)
      refuse("queries must be (H, G, " + std::to_string(keys.d) + ") as the keys are, got d " + std::to_string(d));
    if (values.n != keys.n || values.d != d) refuse("values must have the shape of keys");
  }

  size_t heads, m, d;
  const float* queries;
  float *output, *lse;
};

// A new NumPy array that owns its memory, uninitialised.
template <class T, class... Sizes>
nb::ndarray<nb::numpy, T> new_array(T*& data, Sizes... sizes) {
  const size_t shape[] = {static_cast<size_t>(sizes)...};
  size_t items = 1;
  for (size_t s : shape) items *= s;
  data = new T[items ? items : 1];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T>(data, sizeof...(sizes), shape, owner);
}

}  // namespace ra_bench
