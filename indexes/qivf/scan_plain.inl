// The loops of scan.hpp in plain C++, to be included inside an anonymous namespace: the reference, and what an
// instruction set uses where it has nothing better. Sixteen independent lanes, so that compilers vectorise.

inline void scan_segment(const Segment& segment, size_t slices, const Scanner* queries, size_t count) {
  for (size_t first = 0; first < segment.count; first += kBlockKeys) {
    const uint8_t* block = segment.codes + first / kBlockKeys * slices * kSliceBytes;
    const size_t keys = segment.count - first < kBlockKeys ? segment.count - first : kBlockKeys;
    for (size_t g = 0; g < count; ++g) {
      const Scanner& query = queries[g];
      Candidates& found = *query.found;
      int32_t sums[kBlockKeys] = {};
      for (size_t t = 0; t < slices; ++t)
        for (size_t i = 0; i < kBlockKeys; ++i)
          for (size_t j = 0; j < 4; ++j) {
            const uint8_t byte = block[t * kSliceBytes + i * 4 + j];
            sums[i] += (byte & 15) * query.q[t * 8 + j] + (byte >> 4) * query.q[t * 8 + 4 + j];
          }
      for (size_t i = 0; i < keys; ++i) {
        const float score = query.base + (static_cast<float>(sums[i]) - query.middle) * query.scale *
                                             segment.steps[first + i];
        if (!(score > found.threshold)) continue;
        found.scores[found.size] = score;
        found.ids[found.size++] = segment.ids[first + i];
      }
    }
  }
}

inline void plain_panel_scores(const float* panels, const float* bias, size_t num_panels, size_t d,
                               const float* const* queries, size_t count, float* const* out) {
  for (size_t p = 0; p < num_panels; ++p)
    for (size_t g = 0; g < count; ++g) {
      float sums[16];
      for (size_t i = 0; i < 16; ++i) sums[i] = bias[p * 16 + i];
      const float* panel = panels + p * d * 16;
      for (size_t j = 0; j < d; ++j)
        for (size_t i = 0; i < 16; ++i) sums[i] += panel[j * 16 + i] * queries[g][j];
      for (size_t i = 0; i < 16; ++i) out[g][p * 16 + i] = sums[i];
    }
}

inline float plain_sum_from(const float* key, const float* weight, size_t count, float threshold) {
  float sums[16] = {};
  for (size_t from = 0; from < count; from += 16)
    for (size_t i = 0; i < 16; ++i) sums[i] += key[from + i] >= threshold ? weight[from + i] : 0.0f;
  float sum = 0;
  for (float lane : sums) sum += lane;
  return sum;
}

inline size_t plain_count_from(const float* x, size_t count, float threshold) {
  size_t found = 0;
  for (size_t i = 0; i < count; ++i) found += x[i] >= threshold;
  return found;
}

inline size_t plain_compress(float* scores, int32_t* ids, size_t count, float threshold) {
  size_t kept = 0;
  for (size_t i = 0; i < count; ++i) {
    scores[kept] = scores[i];
    ids[kept] = ids[i];
    kept += scores[i] >= threshold;
  }
  return kept;
}

inline size_t plain_find_from(const float* x, size_t count, float threshold, int32_t* places) {
  size_t found = 0;
  for (size_t i = 0; i < count; ++i)
    if (x[i] >= threshold) places[found++] = static_cast<int32_t>(i);
  return found;
}

inline void plain_range(const float* x, size_t count, float* smallest, float* largest) {
  *smallest = *largest = x[0];
  for (size_t i = 1; i < count; ++i) {
    *smallest = x[i] < *smallest ? x[i] : *smallest;
    *largest = x[i] > *largest ? x[i] : *largest;
  }
}

inline void plain_rank(const float* scores, size_t count, int32_t* ranks) {
  for (size_t i = 0; i < count; ++i) {
    int32_t larger = 0;
    for (size_t j = 0; j < count; ++j) larger += scores[j] > scores[i];
    ranks[i] = larger;
  }
}
