#include "lists.hpp"

namespace ra_bench {

size_t Lists::lay_out(const std::vector<int32_t>& sizes) {
  counts = sizes;
  first_block.resize(sizes.size());
  grown.assign(sizes.size(), {});
  size_t blocks = 0;
  for (size_t l = 0; l < sizes.size(); ++l) {
    first_block[l] = blocks;
    blocks += blocks_of(static_cast<size_t>(sizes[l]));
  }
  return blocks;
}

void store_code(const uint8_t* code, size_t d, size_t place, uint8_t* block) {
  for (size_t j = 0; j < d; ++j) {
    uint8_t& byte = block[j / 8 * kSliceBytes + place * 4 + j % 4];
    byte = static_cast<uint8_t>(byte | (j % 8 < 4 ? code[j] : code[j] << 4));
  }
}

void read_code(const uint8_t* block, size_t d, size_t place, uint8_t* code) {
  for (size_t j = 0; j < d; ++j) {
    const uint8_t byte = block[j / 8 * kSliceBytes + place * 4 + j % 4];
    code[j] = j % 8 < 4 ? byte & 15 : byte >> 4;
  }
}

}  // namespace ra_bench
