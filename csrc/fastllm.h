// fastllm: the public C interface.
//
// One forward over a ragged batch: prefill, decode and many sequences at once are the same call. No file is opened. No
// global changes, but for what a signal handler and fork need: see mapping.c and fork.c. Every entry that can fail
// returns a status. In shapes: n inputs, d outputs, t tokens.
#ifndef FASTLLM_H
#define FASTLLM_H

#include <stddef.h>
#include <stdint.h>

typedef enum fl_status {
    FL_OK = 0,
    FL_NO_MEMORY,    // an allocation failed
    FL_BAD_CONFIG,   // dimensions that cannot be a model
    FL_BAD_TENSOR,   // a tensor is missing, or its shape is not what the config needs
    FL_BAD_TOKEN,    // a token id outside the vocabulary, or none to draw
    FL_BAD_POSITION, // a position outside the context or outside the sequence's pages
    FL_BAD_VALUE,    // a number the target type cannot hold: NaN, infinity, out of range
    FL_NO_ISA,       // the instruction set asked for is unknown, not built, or not on this CPU
} fl_status;

// ---- sizes of the layouts ------------------------------------------------------------------------------------------

enum {
    FL_LANES = 16, // rows of a panel, floats of a vector: the unit of every kernel
    FL_GROUP = 32, // weights (and activations) that share one scale
    FL_PAGE = 64, // positions of a KV page
    FL_ALIGN = 64, // bytes: one cache line, one zmm
};

static inline size_t fl_round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// ---- weights -------------------------------------------------------------------------------------------------------

// How a matrix (d, n) is stored: panels of 16 rows x all of n, rows zero-padded to 16 and n to 32. Within a panel:
//   F32, F16, BF16  for each k: 16 values, one of each row
//   Q8              16 f16 scales per group of 32 k (padded to 64 bytes in all), then per group 8 tiles of
//                   16 rows x 4 k int8, 64 bytes each
//                   (scales apart, so that no tile straddles two cache lines: 13 % more from L2 with AVX-512)
//   Q8_F32          the same with f32 scales: int8 checkpoints with float scales stay exact
//   Q4              scales as with Q8, then per group 4 tiles of 64 bytes: tile i holds codes of what would be the int8
//                   tiles 2 i (low four bits of each byte) and 2 i + 1 (high four bits), into fl_q4_values
// A weight of an int8 panel is value * scale.
typedef enum fl_type { FL_F32 = 0, FL_F16, FL_BF16, FL_Q8, FL_Q8_F32, FL_Q4, FL_TYPES } fl_type;

extern const int8_t fl_q4_values[16];

typedef struct fl_matrix {
    const void *data; // panels, FL_ALIGN-ed; fl_matrix_bytes long; NULL where a model has none here
    fl_type type;
    size_t d, n;       // rows (outputs), columns (inputs)
    const float *bias; // (d,) or NULL; what a model adds to the product, not fl_multiply
} fl_matrix;

// Bytes of one panel of n inputs, and of a whole matrix. 0 for an unknown type and for what no memory can hold.
size_t fl_panel_bytes(fl_type type, size_t n);
size_t fl_matrix_bytes(fl_type type, size_t d, size_t n);

// How a source matrix is stored, row-major: floats of a type, or int8 with f32 scales, one for each run of `group`
// consecutive elements of the flattened matrix (llama2.c's q8_0).
typedef struct fl_source {
    const void *data;    // d * n elements, any alignment
    fl_type type;        // FL_F32, FL_F16, FL_BF16, or FL_Q8_F32 for int8 data
    const void *scales;  // FL_Q8_F32 only: f32, any alignment
    size_t group;        // FL_Q8_F32 only
    size_t d, n;         // rows, columns
    const int32_t *rows; // row r of the result is row rows[r] of the source; NULL: rows in order
    // FL_Q4 only. What a calibration says of the columns h (n, n), the sum of x x^T over inputs x, is U diag(importance)
    // U^T, see fl_factor; importance alone: what a column's squared error counts.
    const struct fl_kernels *kernels; // to compute with
    const float *importance;          // (n,); NULL: a guess
    const float *feedback;            // (n, n) U^T, of which what lies below the diagonal is read; NULL: h is diagonal
    const float *products;            // (n, n) h, with feedback; NULL: values are rounded once
} fl_source;

// Packs `source` into `panels`, fl_matrix_bytes long. Floats to int8: per group of 32, scale = max|w| / 127 rounded to
// f16 (one step up where a subnormal scale would cut values off), values rounded to nearest even. int8 to FL_Q8_F32 copies values and scales (source.group must be a multiple of
// 32 that divides n). Floats to FL_Q4: scale and codes
// of the least squared error that a search finds. FL_BAD_VALUE: a weight is not finite, or too large for the type.
fl_status fl_pack(fl_type type, void *panels, const fl_source *source, size_t threads);

// h (n, n), symmetric and positive definite, as U diag(importance) U^T. U, unit upper triangular, takes the place of h's
// part above the diagonal; the rest of h is working memory. FL_BAD_VALUE: what is on h's diagonal is not above 0, or not
// finite.
fl_status fl_factor(size_t n, double *h, float *importance, size_t threads);

// Writes row r of a matrix as n floats: the embedding lookup.
void fl_matrix_row(const fl_matrix *w, size_t r, float *out);

// Whether n floats are all finite.
int fl_finite(const float *x, size_t n);

uint16_t fl_f16_from_f32(float x); // round to nearest even
float fl_f32_from_f16(uint16_t h);
uint16_t fl_bf16_from_f32(float x); // round to nearest even
float fl_f32_from_bf16(uint16_t h);

// GGUF's block types: the i-th one's name, values of a block and their bytes; NULL past the end. And `count` blocks of
// it as floats.
const char *fl_block(size_t i, size_t *values, size_t *bytes);
fl_status fl_dequantize(size_t block, const void *data, size_t count, size_t threads, float *out);

// ---- instruction sets ----------------------------------------------------------------------------------------------

typedef struct fl_kernels fl_kernels;

// The kernels of the best instruction set that was built and that both CPU and operating system support (name NULL or
// ""), or of the named one: "scalar", "avx2", "avxvnni", "avx512", "amx", "neon". All of them give the same bits.
fl_status fl_kernels_find(const char *name, const fl_kernels **out);
const char *fl_kernels_name(const fl_kernels *k);

// The i-th instruction set built in, worst first (NULL past the end), and whether this machine can run it.
const char *fl_isa_built(size_t i, int *supported);

// A matrix product on its own: x (t, n) to out (t, d rounded up to 16), by the kernels of `k`.
fl_status fl_multiply(const fl_kernels *k, const fl_matrix *w, const float *x, size_t tokens, size_t threads,
                      float *out);

// What a dense layer after the stream does to its sums.
typedef enum fl_dense_act { FL_DENSE_IDENTITY = 0, FL_DENSE_TANH, FL_DENSE_SIGMOID, FL_DENSE_GELU, FL_DENSE_RELU,
                            FL_DENSE_SILU } fl_dense_act;

// A layer of what comes after the stream, such as a classifier's: out (t, d rounded up to 16) = act(w x + bias), x (t, n).
// The bias is the matrix's own, readable to the next multiple of 16.
fl_status fl_dense(const fl_kernels *k, const fl_matrix *w, fl_dense_act act, const float *x, size_t tokens,
                   size_t threads, float *out);

// Attention on its own, of one head: row r of q (rows, head_dim) over the first seen[r] of n keys and values
// (n, head_dim), stored as kv_type, FL_F32 or FL_F16; to out (rows, head_dim). 1 <= seen[r] <= n.
fl_status fl_attend_rows(const fl_kernels *k, fl_type kv_type, size_t rows, size_t n, size_t head_dim, const float *q,
                         const float *keys, const float *values, const size_t *seen, float *out);

// ---- model ---------------------------------------------------------------------------------------------------------

typedef enum fl_norm_kind { FL_RMS_NORM = 0, FL_LAYER_NORM } fl_norm_kind;
typedef enum fl_act { FL_SILU = 0, FL_GELU_TANH, FL_GELU_ERF, FL_QUICK_GELU, FL_RELU } fl_act;
// Norms of queries and keys before they rotate: of each head, or of the row of all heads.
typedef enum fl_qk_norm { FL_QK_NONE = 0, FL_QK_HEAD, FL_QK_ROW } fl_qk_norm;

typedef struct fl_config {
    size_t dim;        // width of the residual stream
    size_t hidden_dim; // width inside the feed-forward
    size_t head_dim;
    size_t n_layers, n_heads, n_kv_heads;
    size_t vocab_size;
    size_t max_seq;
    size_t rotary_dim; // the first rotary_dim channels of a head rotate: pairs (i, i + rotary_dim / 2)
    float norm_eps;
    float attn_scale;  // of query . key, usually 1 / sqrt(head_dim)

    fl_norm_kind norm;
    fl_act act;
    fl_qk_norm qk_norm;
    int causal;           // a token sees those before it; else all of its text, which must come in one span
    int parallel;         // attention and feed-forward read the same stream (no norms after them, then)
    int norm_after;       // attn_norm and ffn_norm come after the additions to the stream, not before the blocks
    float rope_scale;     // of the cosines and sines of rope_freqs[0]
    float attn_softcap;   // scores become cap * tanh(score / cap); 0: none
    float logit_scale, logit_softcap;
    float embed_scale;    // of embeddings
    float residual_scale; // of what a block adds to the stream
    size_t n_experts, n_experts_used, expert_dim;
    int moe_renormalize;  // the chosen experts' probabilities are made to sum to 1
    size_t positions;     // rows of the table of learned positions; 0: none
    int second_segment;   // the table has as many rows again, for the tokens of a second text (BERT's token type 1)
    int32_t mask_token;   // its embedding is zero, and the others of its text are scaled up for it (ESM-2); -1: none
    int32_t pad_token;    // no token sees it (Grok-1); -1: none
} fl_config;

// A norm: weight NULL where a model has none here, bias NULL for zero. Vectors are f32, FL_ALIGN-ed and zero-padded to
// a multiple of 16.
typedef struct fl_norm {
    const float *weight, *bias; // (dim,)
} fl_norm;

typedef struct fl_layer {
    fl_norm attn_norm;
    fl_matrix wq;                  // (n_heads * head_dim, dim)
    fl_matrix wk, wv;              // (n_kv_heads * head_dim, dim)
    const float *q_norm, *k_norm;  // (n_heads * head_dim,), (n_kv_heads * head_dim,) with qk_norm
    fl_matrix wo;                  // (dim, n_heads * head_dim)
    fl_norm post_attn_norm;        // of what attention adds to the stream
    fl_norm ffn_norm;              // none with `parallel`: the feed-forward takes attention's
    fl_matrix w1, w3;              // gate, up: (hidden_dim, dim); without w3: act(w1 x). With experts: the shared one
    fl_matrix w2;                  // down: (dim, hidden_dim)
    fl_norm post_ffn_norm;
    fl_matrix router;              // (n_experts, dim): this layer has experts
    fl_matrix e1, e3, e2;          // of one expert: (expert_dim, dim) twice, (dim, expert_dim); the others follow it
    fl_matrix shared_gate;         // (1, dim): the shared expert is weighed by its sigmoid
    size_t window;                 // a token sees those less than so many positions away; 0: all
    size_t rope;                   // 0: no rotation, else by rope_freqs[rope - 1]
} fl_layer;

// Learns on how many threads forwards of one model are fastest: no more than there are CPUs for this process, and fewer
// while other programs keep some of those busy. A forward that runs beside another of its model goes without.
typedef struct fl_pace fl_pace;
fl_status fl_pace_new(fl_pace **out);
void fl_pace_free(fl_pace *pace);

typedef struct fl_model {
    fl_config config;
    const fl_kernels *kernels;
    fl_type kv_type;              // FL_F32, FL_F16 or FL_Q8
    fl_matrix embed;              // (vocab_size, dim)
    fl_matrix positions;          // (positions, dim), twice as many rows with second_segment
    fl_norm embed_norm;
    fl_norm final_norm;
    fl_matrix head_dense;         // (dim, dim), then act and head_norm: before the head
    fl_norm head_norm;
    fl_matrix head;               // (vocab_size, dim); the embedding itself where the two are tied; none: no logits
    const float *rope_freqs[2];   // (rotary_dim / 2,) radians per position
    fl_layer *layers;             // (n_layers,)
    fl_pace *pace;                // NULL: forwards run on exactly as many threads as are asked for
} fl_model;

// Whether the config can be a model and every tensor is there with its shape and an alignment the kernels can read.
fl_status fl_model_check(const fl_model *m);

// ---- KV cache ------------------------------------------------------------------------------------------------------

// A page holds 64 consecutive positions, aligned to a multiple of 64, of all layers and KV heads of one sequence.
// For each layer and head: keys (head_dim, 64), transposed; then values (64, head_dim rounded up to 16). FL_Q8 has int8
// and, after the keys and after the values, f32 scales: one for 32 channels (the rest at the end) of a position, (groups,
// 64) and (64, groups). At the end, with a pad_token: what is added to the scores of each position, 64 f32.
size_t fl_kv_page_bytes(const fl_model *m);

// A pool that hands out pages and takes them back; it grows in slabs, frees those that hold no page in use, but one,
// and at the end all. Not thread-safe: the caller holds a lock. A page comes with whatever an earlier sequence left in
// it.
typedef struct fl_pool fl_pool;
fl_status fl_pool_new(size_t page_bytes, fl_pool **out);
void fl_pool_free(fl_pool *pool);
fl_status fl_pool_take(fl_pool *pool, void **page);
void fl_pool_give(fl_pool *pool, void *page);

// ---- forward -------------------------------------------------------------------------------------------------------

// New tokens of one sequence. A batch holds a sequence at most once.
typedef struct fl_span {
    const int32_t *tokens; // (n,)
    size_t n;              // 1 or more
    size_t pos;            // position of tokens[0]: how many the sequence already holds
    void *const *pages;   // KV pages, page i for positions 64 i .. 64 i + 63
    size_t n_pages;
    size_t n_logits;       // logits are computed for the last n_logits tokens of the span; 0 to n
    size_t segment;        // tokens from here on are a second text; n: none are
} fl_span;

// Working memory of forwards of one model: one for each call that runs at the same time. Grows, never shrinks.
typedef struct fl_scratch fl_scratch;
fl_status fl_scratch_new(fl_scratch **out);
void fl_scratch_free(fl_scratch *s);

// Floats from one row of logits to the next: the vocabulary rounded up to 16. What lies past it is zero, or NaN in a row
// that is not finite.
size_t fl_logits_stride(const fl_model *m);

// What a forward writes; NULL for what is not wanted.
typedef struct fl_outputs {
    float *logits;           // (sum of n_logits, fl_logits_stride), FL_ALIGN-ed
    float *const *hidden;    // n_layers + 2 pointers, each NULL or (tokens of all spans, dim): the stream before layer 0,
                             // after each layer, and that after the final norm
    float *const *attention; // n_layers pointers, each NULL or, for each span, (n_heads, n, pos + n) probabilities
    float *const *inputs;    // 4 n_layers pointers, each NULL or (tokens of all spans, n): what multiply wq, wk and wv;
                             // wo; w1 and w3; w2 of a layer. Those of experts are not written
} fl_outputs;

// Runs the new tokens of all spans through the model, appends their keys and values to the pages, and writes what is
// wanted. The result is the same to the bit however tokens are split into batches and however many threads run. Where a
// broken model or an overflow makes NaN or infinity, what depends on it is not finite, and nothing else: neither other
// spans nor the tokens before. Which NaN it is, sign and payload, may differ between machines and batches.
fl_status fl_forward(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t threads,
                     const fl_outputs *out);

// ---- sampler -------------------------------------------------------------------------------------------------------

typedef struct fl_sampling {
    float temperature;        // below 1e-6: the most likely token; else logits are divided by it
    size_t top_k;             // keep the k most likely; 0: all
    float top_p;              // keep the smallest set whose probability exceeds top_p; outside (0, 1): all
    float min_p;              // keep tokens at least min_p times as likely as the best; 0: all
    float typical_p;          // locally typical sampling (Meister et al., 2022); outside (0, 1): all
    float repetition_penalty; // of logits of tokens seen in prompt or text (Keskar et al., 2019); 1: none
    float presence_penalty;   // subtracted once for a token that was generated
    float frequency_penalty;  // subtracted as often as a token was generated
} fl_sampling;

typedef struct fl_sampler fl_sampler;
fl_status fl_sampler_new(size_t vocab_size, const fl_sampling *params, uint64_t seed, fl_sampler **out);
void fl_sampler_free(fl_sampler *s);

// Adds `bias` to the logit of `token`, for every draw.
fl_status fl_sampler_bias(fl_sampler *s, int32_t token, float bias);

// Tells the sampler of a token of the prompt (generated 0) or of the text (generated 1), for the penalties. What a
// sampler holds of a text is the tokens it has seen, each once, and nothing where there is no penalty.
fl_status fl_sampler_accept(fl_sampler *s, int32_t token, int generated);

// Working memory of draws: one for each call that runs at the same time, whatever the sampler. Grows, never shrinks.
typedef struct fl_draw_scratch fl_draw_scratch;
fl_status fl_draw_scratch_new(fl_draw_scratch **out);
void fl_draw_scratch_free(fl_draw_scratch *w);

// Draws a token from logits (vocab_size,), readable to the next multiple of 16: biases before penalties, then the
// filters in the order of fl_sampling. What they leave is walked by descending probability, or by typicality, lowest id
// first among equals; without any filter in the order of the vocabulary. Uses one random number unless the temperature
// is 0. Sums of probabilities are doubles: exact as long as none is less than 2^-29 of the sum; else they round in an
// order that follows from the logits and options alone. FL_BAD_VALUE: a logit is not finite. FL_BAD_TOKEN: after biases and
// penalties the largest is not, so that there is no token to draw.
fl_status fl_sampler_draw(fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, const float *logits, int32_t *token);

// ---- the machine ---------------------------------------------------------------------------------------------------

// FL_ALIGN-ed zeroed memory, untouched until it is written; huge pages where the system gives them on request.
void *fl_alloc(size_t bytes);
void fl_free(void *p);

// All of a file that is not empty, open as `fd` (which may be closed after), mapped read-only. It stays safe to read when
// the file is cut short meanwhile: zeros are read then, and the state says so. Returns 0 or an errno. Of the functions
// that make, free and guard mappings, one may run at a time.
typedef struct fl_mapping fl_mapping;
int fl_mapping_new(int fd, fl_mapping **out);
void fl_mapping_free(fl_mapping *m);
const void *fl_mapping_data(const fl_mapping *m);
size_t fl_mapping_bytes(const fl_mapping *m);

// What has become of the file since it was mapped. It takes a system call.
typedef enum fl_file_state {
    FL_FILE_SAME = 0,
    FL_FILE_TRUNCATED,
    FL_FILE_CHANGED,    // written to, by its length and time
    FL_FILE_UNREADABLE, // the disk or the network failed
} fl_file_state;
fl_file_state fl_mapping_state(const fl_mapping *m);

// The same for those who ask after every token: zeros that were read are always noticed, but other changes only when
// this has not asked the system for a tenth of a millisecond.
fl_file_state fl_mapping_glance(fl_mapping *m);

// Puts our handler of SIGBUS in front again where another library has put its own there since: before reading.
void fl_mapping_guard(void);

// Reads `bytes` of memory with `threads` threads; the sum keeps the compiler honest. For measuring bandwidth.
uint64_t fl_read(const void *p, size_t bytes, size_t threads);

// Int8 multiply-adds by `threads` threads at once, the instruction set's best and nothing else, for measuring its
// peak: returns how many there were, in proportion to `rounds`.
uint64_t fl_int8_peak(const fl_kernels *k, size_t rounds, size_t threads);

// Starts `threads` threads at once, the caller being one, and ends them: 0, or the errno with which one did not start.
int fl_try_threads(size_t threads);

// 1 where the build has OpenMP.
int fl_has_threads(void);

#endif
