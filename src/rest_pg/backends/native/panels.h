// Products with panels, the one kernel that everything here is made of.
//
// A matrix B of K x 64 lies as K/2 lines of 64 pairs, (k, k+1) side by side, which is what one AVX-512 bfloat16
// instruction takes for 16 columns. Weights are panels of 64 outputs, keys panels of 64 tokens, values panels of 64
// dimensions. Sums are float32 and always run over K in order: a row's numbers depend neither on the rows beside it nor
// on the number of threads. Processors with AMX multiply 16 rows by 16 columns of such lines at once; which of both ways
// is taken depends on K alone, for that same reason.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace rest_pg {

using bf16 = uint16_t;
constexpr int PANEL = 64;       // columns of a panel: four registers
constexpr int TILE = 6;         // rows at once: 24 sums, 4 registers of the panel, one of the rows

constexpr int SIDE = 16;        // rows, columns and pairs of an AMX tile

// Rows for products: AMX reads them 16 at a time, so behind the last one there is room for as many.
template <class T>
struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <class U>
    Aligned(const Aligned<U> &) {}
    T *allocate(size_t n) { return (T *)::operator new(n * sizeof(T), std::align_val_t(64)); }
    void deallocate(T *p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const Aligned &) const { return true; }
    bool operator!=(const Aligned &) const { return false; }
};
using Rows = std::vector<bf16, Aligned<bf16>>;
inline size_t room(size_t rows, size_t columns) { return (rows + SIDE) * columns; }

// Pairs that hold so many tokens; more than are there weigh 0.
inline int pairs_of(int tokens) {
#ifdef __AMX_BF16__
    return (tokens + 2 * SIDE - 1) / (2 * SIDE) * SIDE;
#else
    return (tokens + 1) / 2;
#endif
}

inline int padded(int n) { return (n + PANEL - 1) / PANEL * PANEL; }

inline __m512 widen(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline void narrow(bf16 *to, __m512 values) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(values));
}

// The first of 16 numbers, as many as are left.
inline __mmask16 first_of(int left) { return left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0; }

inline void narrow(bf16 *to, const float *from, int size) {
    for (int i = 0; i < size; i += 16) {
        const __mmask16 mask = first_of(size - i);
        _mm256_mask_storeu_epi16(to + i, mask, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from + i)));
    }
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

// A thread's tiles: it says once how large they are, and gives them back at the end.
struct Tiles {
#ifdef __AMX_BF16__
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } sizes;
        for (int i = 0; i < 8; i++) sizes.bytes[i] = 4 * SIDE, sizes.rows[i] = SIDE;
        _tile_loadconfig(&sizes);
    }
    ~Tiles() { _tile_release(); }
#endif
};

#ifdef __AMX_BF16__
// Up to 16 rows (two: up to 32) by a panel. Four tiles of sums are at work at once: one alone would wait for itself.
template <bool two>
inline void multiply_tiles(const bf16 *a, size_t stride, const bf16 *panel, int pairs, float *sums, Ahead &ahead) {
    const char *coming = ahead.at;
    const bf16 *below = a + SIDE * stride;
    const int line = 2 * PANEL, to = 4 * PANEL, wide = two ? 2 : 4;  // numbers of a line, bytes of a row, tiles of columns
    // a few at a time, or else they keep the tiles' own lines waiting
    auto fetch = [&] {
        for (int i = 0; i < SIDE / 4; i++, coming += ahead.step) {
            _mm_prefetch(coming, _MM_HINT_T1);
            _mm_prefetch(coming + 64, _MM_HINT_T1);
        }
    };
    for (int column = 0; column < 4; column += wide) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const bf16 *b = panel + 2 * SIDE * column;
        for (int k = 0; k < pairs; k += SIDE) {
            const bf16 *lines = b + (size_t)k * line;
            _tile_loadd(4, a + 2 * k, 2 * stride);
            _tile_loadd(6, lines, 2 * line);
            _tile_dpbf16ps(0, 4, 6);
            fetch();
            _tile_loadd(7, lines + 2 * SIDE, 2 * line);
            _tile_dpbf16ps(1, 4, 7);
            fetch();
            if constexpr (two) {
                _tile_loadd(5, below + 2 * k, 2 * stride);
                _tile_dpbf16ps(2, 5, 6);
                fetch();
                _tile_dpbf16ps(3, 5, 7);
                fetch();
            } else {
                _tile_loadd(5, lines + 4 * SIDE, 2 * line);
                _tile_dpbf16ps(2, 4, 5);
                fetch();
                _tile_loadd(6, lines + 6 * SIDE, 2 * line);
                _tile_dpbf16ps(3, 4, 6);
                fetch();
            }
        }
        float *own = sums + SIDE * column;
        _tile_stored(0, own, to);
        _tile_stored(1, own + SIDE, to);
        _tile_stored(2, two ? own + SIDE * PANEL : own + 2 * SIDE, to);
        _tile_stored(3, two ? own + SIDE * PANEL + SIDE : own + 3 * SIDE, to);
    }
    ahead.at = coming;
}
#endif

// Products of `rows` rows of a with one panel; each(row, four registers of 16 sums) takes them. Meanwhile another
// panel of `ahead_pairs` pairs is fetched.
template <class Each>
inline void multiply(const bf16 *a, size_t stride, int rows, const bf16 *panel, int pairs, Each &&each,
                     const bf16 *coming = nullptr, int coming_pairs = 0) {
    Ahead ahead{(const char *)(coming ? coming : panel), 0};
    auto fetch = [&](int steps) {
        if (coming) ahead.step = std::min(128, (4 * 64 * coming_pairs + steps - 1) / steps);
    };
#ifdef __AMX_BF16__
    if (pairs % SIDE == 0) {
        alignas(64) float sums[2 * SIDE * PANEL];
        fetch((rows + SIDE - 1) / SIDE * pairs);
        for (int begin = 0; begin < rows; begin += 2 * SIDE) {
            const int size = std::min(2 * SIDE, rows - begin);
            const bf16 *from = a + begin * stride;
            if (size > SIDE)
                multiply_tiles<true>(from, stride, panel, pairs, sums, ahead);
            else
                multiply_tiles<false>(from, stride, panel, pairs, sums, ahead);
            for (int row = 0; row < size; row++) {
                __m512 sum[4];
                for (int j = 0; j < 4; j++) sum[j] = _mm512_load_ps(sums + row * PANEL + 16 * j);
                each(begin + row, sum);
            }
        }
        return;
    }
#endif
    const int tiles = (rows + TILE - 1) / TILE;
    fetch(tiles * pairs);
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
