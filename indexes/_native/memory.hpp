// Memory for large tables that searches read at random places.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ra_bench {

// Begins on a cache line; from some MB on, in huge pages where the system has them: with pages of 4 KB nearly
// every random read must look up its page's address in memory first.
template <class T>
struct TableAllocator {
  using value_type = T;
  static constexpr size_t kLine = 64, kHugePage = size_t{1} << 21;

  TableAllocator() = default;
  template <class U>
  TableAllocator(const TableAllocator<U>&) {}

  T* allocate(size_t count) {
    const size_t align = count * sizeof(T) >= 2 * kHugePage ? kHugePage : kLine;
    const size_t bytes = (count * sizeof(T) + align - 1) / align * align;
    void* memory = std::aligned_alloc(align, bytes);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    if (align == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { std::free(memory); }

  template <class U>
  bool operator==(const TableAllocator<U>&) const { return true; }
  template <class U>
  bool operator!=(const TableAllocator<U>&) const { return false; }
};

template <class T>
using Table = std::vector<T, TableAllocator<T>>;

}  // namespace ra_bench
