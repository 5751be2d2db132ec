// Products with panels, the one kernel that everything here is made of.
//
// A matrix B of K x 64 lies as K/2 lines of 64 pairs, (k, k+1) side by side, which is what one AVX-512 bfloat16
// instruction takes for 16 columns. Weights are panels of 64 outputs, keys panels of 64 tokens, values panels of 64
// dimensions. Sums are float32 and always run over K in order: a row's numbers depend neither on the rows beside it nor
// on the number of threads.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace rest_pg {

using bf16 = uint16_t;
constexpr int PANEL = 64;       // columns of a panel: four registers
constexpr int TILE = 6;         // rows at once: 24 sums, 4 registers of the panel, one of the rows

inline int padded(int n) { return (n + PANEL - 1) / PANEL * PANEL; }

inline __m512 widen(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline void narrow(bf16 *to, __m512 values) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(values));
}

inline bf16 narrow(float value) {
    return (bf16)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(value)), 0);
}

// e^x by a polynomial behind powers of two; 2e-7 relative
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// Memory that is asked for while something else is multiplied: a panel is read once, and would be waited for.
struct Ahead {
    const char *at = nullptr;
    int step = 0;  // bytes for each pair
};

template <int M, class Each>
inline void tile(const bf16 *a, size_t stride, const bf16 *panel, int pairs, int first, Ahead &ahead, Each &&each) {
    __m512 sum[M][4];
    for (int m = 0; m < M; m++)
        for (int j = 0; j < 4; j++) sum[m][j] = _mm512_setzero_ps();
    const char *coming = ahead.at;
    const int step = ahead.step;
    for (int k = 0; k < pairs; k++) {
        __m512bh b[4];
        _mm_prefetch(coming, _MM_HINT_T1);
        _mm_prefetch(coming + 64, _MM_HINT_T1);
        coming += step;
        for (int j = 0; j < 4; j++) b[j] = (__m512bh)_mm512_loadu_si512(panel + k * 2 * PANEL + 32 * j);
        for (int m = 0; m < M; m++) {
            int32_t pair;
            std::memcpy(&pair, a + m * stride + 2 * k, 4);
            const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            for (int j = 0; j < 4; j++) sum[m][j] = _mm512_dpbf16_ps(sum[m][j], both, b[j]);
        }
    }
    ahead.at = coming;
    for (int m = 0; m < M; m++) each(first + m, sum[m]);
}

// Products of `rows` rows of a with one panel; each(row, four registers of 16 sums) takes them. Meanwhile another
// panel of `ahead_pairs` pairs is fetched.
template <class Each>
inline void multiply(const bf16 *a, size_t stride, int rows, const bf16 *panel, int pairs, Each &&each,
                     const bf16 *coming = nullptr, int coming_pairs = 0) {
    const int tiles = (rows + TILE - 1) / TILE;
    Ahead ahead{(const char *)(coming ? coming : panel), 0};
    if (coming) ahead.step = std::min(128, (4 * 64 * coming_pairs + tiles * pairs - 1) / (tiles * pairs));
    for (int t = 0; t < tiles; t++) {
        const int begin = rows * t / tiles, size = rows * (t + 1) / tiles - begin;
        const bf16 *from = a + begin * stride;
        switch (size) {
            case 1: tile<1>(from, stride, panel, pairs, begin, ahead, each); break;
            case 2: tile<2>(from, stride, panel, pairs, begin, ahead, each); break;
            case 3: tile<3>(from, stride, panel, pairs, begin, ahead, each); break;
            case 4: tile<4>(from, stride, panel, pairs, begin, ahead, each); break;
            case 5: tile<5>(from, stride, panel, pairs, begin, ahead, each); break;
            case 6: tile<6>(from, stride, panel, pairs, begin, ahead, each); break;
        }
    }
}

// Writes sums down, row by row.
struct Keep {
    float *to;
    int stride;
    void operator()(int row, const __m512 *sum) const {
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(to + (size_t)row * stride + 16 * j, sum[j]);
    }
};

}  // namespace rest_pg
