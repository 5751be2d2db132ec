// A Llama-like model in bfloat16, for many rows behind prompts that they share: prompts are read, and all rows written by
// a token, in one call each.
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "draw.h"
#include "panels.h"
#include "team.h"

namespace rest_pg {

constexpr int BLOCK = 64;       // rows that meet a panel while it is near
constexpr int CHUNK = 24;       // queries of one task of attention

struct Layer {
    const bf16 *qkv, *output, *gate_up, *down;  // panels; gate and up in turns
    const float *qkv_bias;                      // may be null
    const float *norm, *mlp_norm;
    const float *query_norm, *key_norm;         // may be null
    int32_t rotary;                             // whether positions turn queries and keys
    int32_t window;                             // tokens that are seen, or 0: all
};

struct Model {
    int32_t layers, hidden, heads, kv_heads, head_size, intermediate, vocabulary;
    float epsilon, scale;
    const Layer *layer;
    const bf16 *embedding, *head;
    const float *norm;
    // keys and values: [layer][slot][kv head][panel][pair][64][2]
    bf16 *prefix_keys, *prefix_values, *suffix_keys, *suffix_values;
    int32_t groups, rows, prefix_tokens, suffix_tokens;  // capacities; tokens are multiples of 64
};

struct Step {
    int32_t rows;
    const int32_t *token, *slot, *at, *group, *prefix_length;  // of each row
    const float *cosine, *sine;                                // [rows][head size]
    float *logits;                                             // [rows][vocabulary]
};

struct Prompt {
    int32_t tokens, slot;
    const int32_t *token;
    const float *cosine, *sine;  // [tokens][head size]
    float *logits;               // [vocabulary], behind the last token
};

class Decoder {
   public:
    Decoder(const Model &model, int threads) : m_(model), team_(threads) {
        q_size_ = m_.heads * m_.head_size;
        kv_size_ = m_.kv_heads * m_.head_size;
        qkv_ = padded(q_size_ + 2 * kv_size_);
        ways_ = m_.heads / m_.kv_heads;
        chunk_ = std::max(1, CHUNK / ways_);
        span_ = m_.prefix_tokens + m_.suffix_tokens;
        const size_t rows = std::max(m_.rows, m_.prefix_tokens), queries = chunk_ * ways_;
        x_.resize(rows * m_.hidden);
        projected_.resize(rows * qkv_);
        normed_.resize(room(rows, m_.hidden));
        queries_.resize((size_t)m_.prefix_tokens * q_size_);
        attended_.resize(room(rows, q_size_));
        gated_.resize(room(rows, m_.intermediate));
        for (int i = 0; i < threads; i++)
            scratch_.push_back({std::vector<float>(queries * span_), Rows(room(queries, span_)),
                                Rows(room(queries, m_.head_size)),
                                std::vector<float>(queries * padded(m_.head_size)),
                                std::vector<float>(BLOCK * PANEL), std::vector<float>(m_.head_size),
                                Rows(2 * m_.head_size)});
    }

    void step(const Step &step) {
        plan(step);
        team_.run([&](int thread) {
            const Tiles tiles;
            Scratch &own = scratch_[thread];
            embed(step.rows, step.token);
            layers(step.rows, [&](int i) {
                team_.share((int)chunks_.size() * m_.kv_heads, [&](int task) {
                    attend(step, i, m_.layer[i], chunks_[task / m_.kv_heads], task % m_.kv_heads, own);
                });
            }, own);
            logits(0, step.rows, step.logits);
        });
    }

    void read(const Prompt &p) {
        const int blocks = (p.tokens + PANEL - 1) / PANEL, chunks = (p.tokens + chunk_ - 1) / chunk_;
        team_.run([&](int thread) {
            const Tiles tiles;
            Scratch &own = scratch_[thread];
            embed(p.tokens, p.token);
            layers(p.tokens, [&](int i) {
                team_.share(blocks * m_.kv_heads, [&](int task) {
                    remember(p, i, task / m_.kv_heads * PANEL, task % m_.kv_heads, own);
                });
                // the last tokens see most: they come first, so that no thread is left with them
                team_.share(chunks * m_.kv_heads, [&](int task) {
                    const int first = (chunks - 1 - task / m_.kv_heads) * chunk_;
                    attend_prompt(p, i, first, std::min(chunk_, p.tokens - first), task % m_.kv_heads, own);
                });
            }, own);
            logits(p.tokens - 1, 1, p.logits);
        });
    }

   private:
    struct Scratch {
        std::vector<float> scores;
        Rows weights, queries;
        std::vector<float> output, gate, turned;
        Rows narrowed;  // a key and a value
    };
    struct Chunk {
        const int *row;
        int rows;
    };

    // Rows of one group, a few at a time.
    void plan(const Step &s) {
        order_.resize(s.rows);
        std::iota(order_.begin(), order_.end(), 0);
        std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return s.group[a] < s.group[b]; });
        chunks_.clear();
        for (int begin = 0, end; begin < s.rows; begin = end) {
            const int group = s.group[order_[begin]];
            for (end = begin + 1; end < s.rows && end - begin < chunk_; end++)
                if (s.group[order_[end]] != group) break;
            chunks_.push_back({&order_[begin], end - begin});
        }
    }

    void embed(int rows, const int32_t *token) {
        team_.share(rows, [&](int row) {
            const bf16 *from = m_.embedding + (size_t)token[row] * m_.hidden;
            float *x = &x_[(size_t)row * m_.hidden];
            for (int i = 0; i < m_.hidden; i += 16)
                _mm512_storeu_ps(x + i, widen(_mm256_loadu_si256((const __m256i *)(from + i))));
        });
    }

    template <class Attention>
    void layers(int rows, Attention &&attention, Scratch &own) {
        for (int i = 0; i < m_.layers; i++) {
            const Layer &layer = m_.layer[i];
            normalise(0, rows, layer.norm);
            product(rows, normed_.data(), qkv(i), output(i), [&](int row, int column, const __m512 *sum) {
                float *to = &projected_[(size_t)row * qkv_ + column];
                for (int j = 0; j < 4; j++) {
                    const __m512 bias = layer.qkv_bias ? _mm512_loadu_ps(layer.qkv_bias + column + 16 * j)
                                                       : _mm512_setzero_ps();
                    _mm512_storeu_ps(to + 16 * j, _mm512_add_ps(sum[j], bias));
                }
            });
            attention(i);
            add_product(rows, attended_.data(), output(i), gate_up(i));
            normalise(0, rows, layer.mlp_norm);
            gate(rows, gate_up(i), down(i), own);
            add_product(rows, gated_.data(), down(i), i + 1 < m_.layers ? qkv(i + 1) : head());
        }
    }

    // Of the `rows` rows from `first` on.
    void logits(int first, int rows, float *to) {
        normalise(first, rows, m_.norm);
        const bf16 *a = &normed_[(size_t)first * m_.hidden];
        product(rows, a, head(), Weights{}, [&](int row, int column, const __m512 *sum) {
            float *line = to + (size_t)row * m_.vocabulary + column;
            for (int j = 0; j < 4; j++) {
                const __mmask16 mask = first_of(m_.vocabulary - column - 16 * j);
                _mm512_mask_storeu_ps(line + 16 * j, mask, sum[j]);
            }
        });
    }

    struct Weights {
        const bf16 *panels = nullptr;
        int count = 0, k = 0, at_once = 1;  // panels that are multiplied together
        size_t size() const { return (size_t)at_once * k * PANEL; }
    };
    Weights qkv(int i) const { return {m_.layer[i].qkv, qkv_ / PANEL, m_.hidden}; }
    Weights output(int i) const { return {m_.layer[i].output, padded(m_.hidden) / PANEL, q_size_}; }
    Weights gate_up(int i) const { return {m_.layer[i].gate_up, padded(m_.intermediate) / PANEL, m_.hidden, 2}; }
    Weights down(int i) const { return {m_.layer[i].down, padded(m_.hidden) / PANEL, m_.intermediate}; }
    Weights head() const { return {m_.head, padded(m_.vocabulary) / PANEL, m_.hidden}; }

    // Tasks of one panel each, for all rows of a step, or some of a prompt's; the last panels are shared by rows, so
    // that all threads end together. work(panel, first row, rows, the panel to fetch meanwhile, its pairs).
    template <class Work>
    void deal(int rows, Weights w, Weights next, Work &&work) {
        const int threads = team_.size(), parts = (rows + BLOCK - 1) / BLOCK;
        const int whole = parts > 1 ? w.count : w.count / threads * threads;
        team_.share(whole * parts + (w.count - whole) * threads, [&](int task) {
            const int rest = task - whole * parts, of = rest < 0 ? parts : threads;
            const int panel = rest < 0 ? task / parts : whole + rest / threads;
            const int part = rest < 0 ? task % parts : rest % threads;
            const int begin = rows * part / of, count = rows * (part + 1) / of - begin;
            const int after = panel + (parts > 1 ? 1 : threads);
            const Weights &then = after < w.count ? w : next;
            const bf16 *coming = after < w.count ? w.panels + after * w.size()
                                 : next.panels   ? next.panels + std::min(task % threads, next.count - 1) * next.size()
                                                 : nullptr;
            if (count) work(panel, begin, count, coming, then.k / 2);
        });
    }

    template <class Each>
    void product(int rows, const bf16 *a, Weights w, Weights next, Each &&each) {
        deal(rows, w, next, [&](int panel, int first, int count, const bf16 *coming, int coming_pairs) {
            multiply(a + (size_t)first * w.k, w.k, count, w.panels + panel * w.size(), w.k / 2,
                     [&](int row, const __m512 *sum) { each(first + row, panel * PANEL, sum); }, coming,
                     coming_pairs);
        });
    }

    void add_product(int rows, const bf16 *a, Weights w, Weights next) {
        product(rows, a, w, next, [&](int row, int column, const __m512 *sum) {
            float *to = &x_[(size_t)row * m_.hidden + column];
            for (int j = 0; j < 4 && column + 16 * j < m_.hidden; j++)
                _mm512_storeu_ps(to + 16 * j, _mm512_add_ps(_mm512_loadu_ps(to + 16 * j), sum[j]));
        });
    }

    // silu(gate) * up, 64 columns of both at a time
    void gate(int rows, Weights w, Weights next, Scratch &own) {
        deal(rows, w, next, [&](int panel, int first, int count, const bf16 *coming, int coming_pairs) {
            const bf16 *a = &normed_[(size_t)first * w.k], *gates = w.panels + panel * w.size();
            const bf16 *ups = gates + (size_t)w.k * PANEL;
            const int column = panel * PANEL;
            float *kept = own.gate.data();
            multiply(a, w.k, count, gates, w.k / 2, Keep{kept, PANEL}, ups, w.k / 2);
            multiply(a, w.k, count, ups, w.k / 2, [&](int row, const __m512 *sum) {
                bf16 *to = &gated_[(size_t)(first + row) * m_.intermediate + column];
                for (int j = 0; j < 4 && column + 16 * j < m_.intermediate; j++) {
                    const __m512 g = _mm512_loadu_ps(kept + row * PANEL + 16 * j), one = _mm512_set1_ps(1.0f);
                    const __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), g));
                    narrow(to + 16 * j, _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), sum[j]));
                }
            }, coming, coming_pairs);
        });
    }

    void normalise(int first, int rows, const float *weight) {
        team_.share(rows, [&](int index) {
            const int row = first + index;
            const float *x = &x_[(size_t)row * m_.hidden];
            const __m512 factor = _mm512_set1_ps(root(x, m_.hidden));
            for (int i = 0; i < m_.hidden; i += 16)
                narrow(&normed_[(size_t)row * m_.hidden + i],
                       _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor), _mm512_loadu_ps(weight + i)));
        });
    }

    // 1 / root of the mean square
    float root(const float *x, int size) const {
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < size; i += 16) {
            const __m512 v = _mm512_maskz_loadu_ps(first_of(size - i), x + i);
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        return 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / size + m_.epsilon);
    }

    // A head's query or key: normed and turned by its position.
    template <class Positions>
    const float *turn(const float *x, const float *norm, const Layer &layer, const Positions &positions, int row,
                      float *to) const {
        const int size = m_.head_size, half = size / 2;
        const __m512 factor = _mm512_set1_ps(norm ? root(x, size) : 1.0f);
        const float *c = positions.cosine + (size_t)row * size, *d = positions.sine + (size_t)row * size;
        for (int i = 0; i < half; i += 16) {
            const __mmask16 mask = first_of(half - i);
            auto load = [&](const float *from) { return _mm512_maskz_loadu_ps(mask, from + i); };
            __m512 a = load(x), b = load(x + half);
            if (norm) {
                a = _mm512_mul_ps(a, _mm512_mul_ps(factor, load(norm)));
                b = _mm512_mul_ps(b, _mm512_mul_ps(factor, load(norm + half)));
            }
            if (layer.rotary) {
                const __m512 turned = _mm512_fmsub_ps(a, load(c), _mm512_mul_ps(b, load(d)));
                b = _mm512_fmadd_ps(b, load(c + half), _mm512_mul_ps(a, load(d + half)));
                a = turned;
            }
            _mm512_mask_storeu_ps(to + i, mask, a);
            _mm512_mask_storeu_ps(to + i + half, mask, b);
        }
        return to;
    }

    // Attention of the rows of a chunk, by the query heads of one key head: prompt and suffix in one softmax.
    void attend(const Step &s, int index, const Layer &layer, Chunk chunk, int head, Scratch &own) {
        const int size = m_.head_size, wide = padded(size), queries = chunk.rows * ways_;
        const int prompt = s.prefix_length[chunk.row[0]], cut = padded(prompt);
        const bf16 *keys = prefix(m_.prefix_keys, index, s.group[chunk.row[0]], head, size);
        const bf16 *values = prefix(m_.prefix_values, index, s.group[chunk.row[0]], head, wide);
        auto suffix = [&](bf16 *memory, int row, int width) {
            const size_t at = ((size_t)index * m_.rows + s.slot[chunk.row[row]]) * m_.kv_heads + head;
            return memory + at * m_.suffix_tokens * width;
        };
        // the rows' own keys and values lie apart: asked for together, they are waited for once
        auto ask = [](const bf16 *from, size_t numbers) {
            for (size_t i = 0; i < numbers; i += 32) _mm_prefetch((const char *)(from + i), _MM_HINT_T1);
        };
        for (int row = 0; row < chunk.rows; row++) {
            const int tokens = s.at[chunk.row[row]] + 1;
            ask(suffix(m_.suffix_keys, row, size), (size_t)padded(tokens) * size);
            for (int panel = 0; panel < wide; panel += PANEL)
                ask(suffix(m_.suffix_values, row, wide) + (size_t)panel * m_.suffix_tokens,
                    (size_t)pairs_of(tokens) * 2 * PANEL);
        }
        for (int row = 0; row < chunk.rows; row++) {
            const int r = chunk.row[row], at = s.at[r];
            const float *projected = &projected_[(size_t)r * qkv_];
            for (int way = 0; way < ways_; way++) {
                const float *q = turn(projected + (head * ways_ + way) * size, layer.query_norm, layer, s, r,
                                      own.turned.data());
                narrow(&own.queries[(size_t)(row * ways_ + way) * size], q, size);
            }
            const float *k = turn(projected + q_size_ + head * size, layer.key_norm, layer, s, r,
                                  own.turned.data());
            put(k, projected + q_size_ + kv_size_ + head * size, at, suffix(m_.suffix_keys, row, size),
                suffix(m_.suffix_values, row, wide), m_.suffix_tokens, own);
        }
        read_keys(own, queries, keys, prompt);
        for (int row = 0; row < chunk.rows; row++)
            for (int at = 0; at <= s.at[chunk.row[row]]; at += PANEL)
                multiply(&own.queries[(size_t)row * ways_ * size], size, ways_,
                         suffix(m_.suffix_keys, row, size) + (size_t)at * size, size / 2,
                         Keep{own.scores.data() + (size_t)row * ways_ * span_ + cut + at, span_});
        for (int query = 0; query < queries; query++) {
            const int at = s.at[chunk.row[query / ways_]], position = prompt + at;
            const int from = layer.window ? std::max(0, position - layer.window + 1) : 0;
            weigh(&own.scores[(size_t)query * span_], &own.weights[(size_t)query * span_], from, prompt, cut,
                  at + 1);
        }
        read_values(own, queries, values, prompt);
        for (int panel = 0; panel < wide; panel += PANEL)
            for (int row = 0; row < chunk.rows; row++)
                multiply(&own.weights[(size_t)row * ways_ * span_ + cut], span_, ways_,
                         suffix(m_.suffix_values, row, wide) + (size_t)panel * m_.suffix_tokens,
                         pairs_of(s.at[chunk.row[row]] + 1), [&](int way, const __m512 *sum) {
                             float *to = &own.output[(size_t)(row * ways_ + way) * wide + panel];
                             for (int j = 0; j < 4; j++)
                                 _mm512_storeu_ps(to + 16 * j,
                                                  _mm512_add_ps(_mm512_loadu_ps(to + 16 * j), sum[j]));
                         });
        for (int query = 0; query < queries; query++) {
            const int r = chunk.row[query / ways_], h = head * ways_ + query % ways_;
            write(own, query, &attended_[(size_t)r * q_size_ + h * size]);
        }
    }

    // A token's key and value into their panels; `capacity` tokens have room there.
    void put(const float *k, const float *v, int at, bf16 *keys, bf16 *values, int capacity, Scratch &own) const {
        const int size = m_.head_size;
        bf16 *key = own.narrowed.data(), *value = key + size;
        narrow(key, k, size);
        narrow(value, v, size);
        keys += (size_t)(at / PANEL) * PANEL * size + (at % PANEL) * 2;
        for (int i = 0; i < size; i += 2) std::memcpy(keys + i * PANEL, key + i, 2 * sizeof(bf16));
        for (int first = 0; first < size; first += PANEL, values += (size_t)capacity * PANEL) {
            bf16 *to = values + (size_t)(at / 2) * 2 * PANEL + at % 2;
            for (int i = first; i < std::min(size, first + PANEL); i++) to[(i - first) * 2] = value[i];
        }
    }

    bf16 *prefix(bf16 *memory, int layer, int slot, int head, int width) const {
        return memory + (((size_t)layer * m_.groups + slot) * m_.kv_heads + head) * m_.prefix_tokens * width;
    }

    // Keys and values of 64 tokens of a prompt, by one key head, and the queries that go with it.
    void remember(const Prompt &p, int i, int first, int head, Scratch &own) {
        const int size = m_.head_size;
        const Layer &layer = m_.layer[i];
        bf16 *keys = prefix(m_.prefix_keys, i, p.slot, head, size);
        bf16 *values = prefix(m_.prefix_values, i, p.slot, head, padded(size));
        for (int at = first; at < std::min(p.tokens, first + PANEL); at++) {
            const float *projected = &projected_[(size_t)at * qkv_];
            for (int way = head * ways_; way < (head + 1) * ways_; way++) {
                const float *q = turn(projected + way * size, layer.query_norm, layer, p, at, own.turned.data());
                narrow(&queries_[(size_t)at * q_size_ + way * size], q, size);
            }
            const float *k = turn(projected + q_size_ + head * size, layer.key_norm, layer, p, at, own.turned.data());
            put(k, projected + q_size_ + kv_size_ + head * size, at, keys, values, m_.prefix_tokens, own);
        }
    }

    // Causal attention of a few tokens of a prompt, by the query heads of one key head.
    void attend_prompt(const Prompt &p, int layer, int first, int tokens, int head, Scratch &own) {
        const int size = m_.head_size, queries = tokens * ways_, seen = first + tokens;
        const bf16 *keys = prefix(m_.prefix_keys, layer, p.slot, head, size);
        const bf16 *values = prefix(m_.prefix_values, layer, p.slot, head, padded(size));
        for (int row = 0; row < tokens; row++)
            std::memcpy(&own.queries[(size_t)row * ways_ * size],
                        &queries_[(size_t)(first + row) * q_size_ + head * ways_ * size],
                        sizeof(bf16) * ways_ * size);
        read_keys(own, queries, keys, seen);
        for (int query = 0; query < queries; query++) {
            const int position = first + query / ways_, window = m_.layer[layer].window;
            weigh(&own.scores[(size_t)query * span_], &own.weights[(size_t)query * span_],
                  window ? std::max(0, position - window + 1) : 0, position + 1, padded(seen), 0);
        }
        read_values(own, queries, values, seen);
        for (int query = 0; query < queries; query++)
            write(own, query,
                  &attended_[(size_t)(first + query / ways_) * q_size_ + (head * ways_ + query % ways_) * size]);
    }

    void read_keys(Scratch &own, int queries, const bf16 *keys, int tokens) {
        const int size = m_.head_size;
        for (int at = 0; at < tokens; at += PANEL)
            multiply(own.queries.data(), size, queries, keys + (size_t)at * size, size / 2,
                     Keep{own.scores.data() + at, span_});
    }

    void read_values(Scratch &own, int queries, const bf16 *values, int tokens) {
        const int wide = padded(m_.head_size);
        for (int panel = 0; panel < wide; panel += PANEL)
            multiply(own.weights.data(), span_, queries, values + (size_t)panel * m_.prefix_tokens,
                     pairs_of(tokens), Keep{own.output.data() + panel, wide});
    }

    void write(const Scratch &own, int query, bf16 *to) const {
        const __m512 share = _mm512_set1_ps(1.0f / own.scores[(size_t)query * span_]);
        const float *from = &own.output[(size_t)query * padded(m_.head_size)];
        for (int i = 0; i < m_.head_size; i += 16) {
            const __m512 whole = _mm512_mul_ps(_mm512_loadu_ps(from + i), share);
            _mm256_mask_storeu_epi16(to + i, first_of(m_.head_size - i), (__m256i)_mm512_cvtneps_pbh(whole));
        }
    }

    // Softmax weights, not divided by their sum, which is left in scores[0]. Seen are the prompt's tokens in
    // [from, prompt) and `length` of the suffix's, which lie from `cut` on; all others weigh 0.
    void weigh(float *scores, bf16 *weights, int from, int prompt, int cut, int length) const {
        const int behind = cut + std::max(0, from - prompt), end = cut + length;
        const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        auto seen = [&](int at) {
            const __m512i token = _mm512_add_epi32(_mm512_set1_epi32(at), count);
            auto within = [&](int low, int high) {
                return _mm512_mask_cmplt_epi32_mask(_mm512_cmpge_epi32_mask(token, _mm512_set1_epi32(low)), token,
                                                    _mm512_set1_epi32(high));
            };
            return (__mmask16)(within(from, prompt) | within(behind, end));
        };
        __m512 highest = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), total = _mm512_setzero_ps();
        const int stop = 2 * pairs_of(end);
        for (int at = 0; at < stop; at += 16) {
            const __mmask16 mask = seen(at);
            highest = _mm512_mask_max_ps(highest, mask, highest, _mm512_loadu_ps(scores + at));
        }
        const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(highest)), scale = _mm512_set1_ps(m_.scale);
        for (int at = 0; at < stop; at += 16) {
            const __mmask16 mask = seen(at);
            const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + at), most);
            const __m512 e = _mm512_maskz_mov_ps(mask, exponential(_mm512_mul_ps(below, scale)));
            total = _mm512_add_ps(total, e);
            narrow(weights + at, e);
        }
        scores[0] = _mm512_reduce_add_ps(total);
    }

    const Model m_;
    Team team_;
    int q_size_, kv_size_, qkv_, ways_, chunk_, span_;
    std::vector<float> x_, projected_;
    std::vector<bf16> queries_;
    Rows normed_, attended_, gated_;
    std::vector<Scratch> scratch_;
    std::vector<int> order_;
    std::vector<Chunk> chunks_;
};

}  // namespace rest_pg

using namespace rest_pg;

extern "C" {
void rest_pg_draw(const Draw *d) {
#pragma omp parallel for schedule(static)
    for (int i = 0; i < d->rows; i++) draw(*d, i);
}
void *rest_pg_decoder(const Model *model, int32_t threads) { return new Decoder(*model, threads); }
void rest_pg_step(void *decoder, const Step *step) { static_cast<Decoder *>(decoder)->step(*step); }
void rest_pg_read(void *decoder, const Prompt *prompt) { static_cast<Decoder *>(decoder)->read(*prompt); }
void rest_pg_close(void *decoder) { delete static_cast<Decoder *>(decoder); }
}
