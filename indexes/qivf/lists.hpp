// Inverted lists of 4-bit codes, in blocks of 16 keys that a vector register scores together.
//
// A key's code is that of its mapped residual: x = (key - centroid) M, each coordinate one of 16 levels
// (code - 7.5) times the key's own step. Blocks hold 8 dimensions of 16 keys in 64 bytes: byte 4 i + j is
// dimension j of key i in its low half and dimension 4 + j in its high half.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ra_bench {

constexpr size_t kBlockKeys = 16;
constexpr size_t kSliceBytes = 64;  // 8 dimensions of one block

// Keys of one list that lie together.
struct Segment {
  const uint8_t* codes = nullptr;
  const float* steps = nullptr;
  const int32_t* ids = nullptr;
  size_t count = 0;
};

// Keys that were inserted after the build.
struct Grown {
  std::vector<uint8_t> codes;
  std::vector<float> steps;
  std::vector<int32_t> ids;
};

inline size_t slices_of(size_t d) { return (d + 7) / 8; }
inline size_t blocks_of(size_t keys) { return (keys + kBlockKeys - 1) / kBlockKeys; }

// The lists: the built ones in three arrays, list after list in whole blocks; after them those of inserted
// keys, which hold them as `grown`.
struct Lists {
  size_t n = 0, d = 0;
  std::vector<int32_t> counts;       // (nlist): built keys
  std::vector<size_t> first_block;   // (nlist)
  const uint8_t* codes = nullptr;    // (blocks, slices, 64); owned or a mapped file
  const float* steps = nullptr;      // (blocks, 16)
  const int32_t* ids = nullptr;      // (blocks, 16), -1 after a list's last
  std::vector<uint8_t> owned_codes;
  std::vector<float> owned_steps;
  std::vector<int32_t> owned_ids;
  std::vector<Grown> grown;          // (nlist)

  void add_empty() {
    counts.push_back(0);
    first_block.push_back(0);
    grown.emplace_back();
  }

  size_t nlist() const { return counts.size(); }
  size_t block_bytes() const { return slices_of(d) * kSliceBytes; }
  size_t size(size_t list) const { return static_cast<size_t>(counts[list]) + grown[list].ids.size(); }
  Segment built(size_t list) const {
    const size_t b = first_block[list];
    return {codes + b * block_bytes(), steps + b * kBlockKeys, ids + b * kBlockKeys,
            static_cast<size_t>(counts[list])};
  }
  Segment inserted(size_t list) const {
    const Grown& g = grown[list];
    return {g.codes.data(), g.steps.data(), g.ids.data(), g.ids.size()};
  }

  // Makes room for lists of these sizes; returns the number of blocks.
  size_t lay_out(const std::vector<int32_t>& sizes);
};

// Stores a key's code at place `place` of its block; the block's bytes must be zero there.
void store_code(const uint8_t* code, size_t d, size_t place, uint8_t* block);

// What store_code stored.
void read_code(const uint8_t* block, size_t d, size_t place, uint8_t* code);

}  // namespace ra_bench
