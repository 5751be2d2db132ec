// The next token of each row: exact nucleus sampling by rejection, as backends/sampling.py says.
#pragma once
#include <limits>
#include <vector>

#include "panels.h"

namespace rest_pg {

struct Draw {
    int32_t rows, vocabulary;
    float temperature, top_p;
    const float *logits;   // [any][vocabulary]
    const int64_t *row;    // of the logits, for each draw
    const float *uniform;  // in [0, 1), for each draw
    int64_t *token;
    bool *accepted;
};

// A token by inversion of the cumulative softmax, and whether it is in the nucleus: whether those likelier than it
// weigh less than top_p together.
void draw(const Draw &d, int index) {
    constexpr int BLOCK = 256;
    const int size = d.vocabulary, blocks = (size + BLOCK - 1) / BLOCK;
    const float *x = d.logits + (size_t)d.row[index] * size;
    auto inside = [&](int at) { return (__mmask16)(size - at >= 16 ? 0xffff : (1u << (size - at)) - 1); };
    __m512 highest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int at = 0; at < size; at += 16)
        highest = _mm512_mask_max_ps(highest, inside(at), highest, _mm512_maskz_loadu_ps(inside(at), x + at));
    const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
    const __m512 inverse = _mm512_set1_ps(1.0f / d.temperature);
    auto weigh = [&](int at, __mmask16 mask) {
        const __m512 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + at), most);
        return _mm512_maskz_mov_ps(mask, exponential(_mm512_mul_ps(below, inverse)));
    };
    std::vector<double> sums(blocks);
    double total = 0;
    for (int block = 0; block < blocks; block++) {
        __m512 sum = _mm512_setzero_ps();
        for (int at = block * BLOCK; at < std::min(size, (block + 1) * BLOCK); at += 16)
            sum = _mm512_add_ps(sum, weigh(at, inside(at)));
        total += sums[block] = _mm512_reduce_add_ps(sum);
    }
    double left = d.uniform[index] * total;
    int block = 0;
    for (; block < blocks - 1 && left >= sums[block]; block++) left -= sums[block];
    int token = block * BLOCK;
    for (int at = block * BLOCK; at < std::min(size, (block + 1) * BLOCK) && left >= 0; at += 16) {
        alignas(64) float weights[16];
        _mm512_store_ps(weights, weigh(at, inside(at)));
        for (int i = 0; i < 16 && left >= 0; i++)
            if (weights[i] > 0) token = at + i, left -= weights[i];
    }
    __m512 above = _mm512_setzero_ps();
    const __m512 own = _mm512_set1_ps(x[token]);
    for (int at = 0; at < size; at += 16) {
        const __mmask16 mask = _mm512_mask_cmp_ps_mask(inside(at), _mm512_maskz_loadu_ps(inside(at), x + at), own,
                                                       _CMP_GT_OQ);
        if (mask) above = _mm512_add_ps(above, weigh(at, mask));
    }
    d.token[index] = token;
    d.accepted[index] = _mm512_reduce_add_ps(above) < d.top_p * total;
}

}  // namespace rest_pg
