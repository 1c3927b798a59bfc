// fastllm: the public C interface.
//
// The core runs transformers on CPUs. It opens no file, never exits, and has no globals that change, but for what a
// signal handler and fork need (mapping.c, fork.c). What can fail returns a status; what only wraps the system returns
// its errno, and fl_alloc NULL. Pointers are never NULL unless the text says so. Nothing here locks: one object may be
// used by several threads at a time only if they do not change it.
//
// Shapes are written (rows, columns), row-major: n inputs, d outputs, t tokens. A size that is "rounded up" is so to a
// multiple.
//
// ---- words: one meaning each ---------------------------------------------------------------------------------------
//
// lane      One of the 16 floats of a vector. Kernels are written once over vectors of 16 lanes; an instruction set has
//           them in one register or several. In a matrix product a lane is an output row.
//
// group     32 consecutive channels of K, the dimension that a product sums over, which share a scale. Weights and
//           activations of int8 have the same groups.
//
// panel     16 rows of a matrix x all of K, stored together: one row for each lane. Products are dealt out to workers
//           by panels.
//
// line      64 bytes of an int8 panel, one cache line: 16 rows x 4 k. A group of q4 has four lines, one of q8 eight.
//
// bundle    The int8 activations of 16 tokens side by side, as products with many tokens read them. A token has a place
//           in its bundle. Up to 8 tokens lie each alone.
//
// tile      What one kernel call keeps in registers: the sums of P panels x T tokens. Also one of Intel's AMX
//           registers.
//
// kind      Of layers: those of a model that have the same window, see equally far back, and share pages.
//
// page      The keys and values of 64 consecutive positions of a sequence, in all layers of one kind and all KV heads.
//           A block is something else: GGUF's unit of quantized weights.
//
// branch    Attention or feed-forward: what a layer computes from the residual stream and adds to it.
//
// worker    A thread of a team that runs a forward or draws, with scratch memory of its own.
//
// forward   One call of fl_forward, which takes the spans of one batch through the model.
//
// span      New tokens of one sequence, at consecutive positions. A prompt is a long span, a step of decoding one of 1.
//
// batch     The spans of one forward, of as many sequences. Its tokens are numbered span after span.
//
// sequence  What owns pages, and so a context: positions 0, 1, ... that have been computed.
//
// text      What a user asked for: a prompt and what is written after it. The core knows only sequences.
//
// deal      Dealing out work: the items of a phase go in chunks. Each worker begins with its own share, and goes on
//           with what is left of others'; see threads.h.
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
    FL_NO_PAGES,     // a pool's limit does not allow another page
    FL_CANCELLED,    // what the caller watches for has ended a forward early
} fl_status;

enum {
    FL_LANES = 16, // floats of a vector, rows of a panel
    FL_GROUP = 32, // channels that share a scale
    FL_PAGE = 64,  // positions of a page
    FL_ALIGN = 64, // bytes: a cache line, a line of a panel, an AVX-512 register
};

// n rounded up to a multiple of `to`, which need not be a power of two.
static inline size_t fl_round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// ---- weights -------------------------------------------------------------------------------------------------------

// How a matrix (d, n) is stored: as panels, one after the other, with zeros for the rows and columns that d rounded up
// to 16 and n rounded up to 32 have more. Within a panel:
//
//   F32, F16, BF16  for each k: 16 values, one of each row
//   Q8              for each group 16 f16 scales, one of each row, padded to 64 bytes in all; then for each group 8
//                   lines: line i has 4 int8 of each row, those of k = 4 i to 4 i + 3. A weight is value * scale.
//                   Scales lie apart so that no line straddles two cache lines: AVX-512 reads 13 % more from L2 so
//   Q4              scales as with Q8; then for each group 4 lines of codes into a table of 16 int8, the matrix's
//                   `values`: line i has in the low four bits of its bytes what would be line 2 i of Q8, in the high
//                   four bits line 2 i + 1. A weight is values[code] * scale
//   Q4_MIN          the same, and after each 16 scales 16 f16 minima. A weight is values[code] * scale + minimum
typedef enum fl_type { FL_F32 = 0, FL_F16, FL_BF16, FL_Q8, FL_Q4, FL_Q4_MIN, FL_TYPES } fl_type;

extern const int8_t fl_q4_values[16]; // the table of matrices that fl_pack rounds to FL_Q4

typedef struct fl_matrix {
    const void *data;  // panels, FL_ALIGN-ed, fl_matrix_bytes long; NULL where a model has none here
    fl_type type;
    size_t d, n;       // rows (outputs), columns (inputs)
    const float *bias; // (d rounded up to 16,), or NULL: what a model adds to the product; fl_multiply does not
    int8_t values[16]; // FL_Q4: what codes stand for; FL_Q4_MIN: 0 to 15
} fl_matrix;

// Bytes of one panel of n columns, and of a whole matrix (d, n). 0 for an unknown type, and for what no memory can
// hold.
size_t fl_panel_bytes(fl_type type, size_t n);
size_t fl_matrix_bytes(fl_type type, size_t d, size_t n);

// A type of GGUF's blocks, ggml's quantization (ggml-common.h there). A block has some consecutive values of a row.
typedef struct fl_block {
    const char *name;      // such as "Q4_K"
    size_t values, bytes;  // of a block
    fl_type packed;        // FL_Q8, FL_Q4 or FL_Q4_MIN: what fl_pack moves it into; FL_F32: it must be dequantized
    const int8_t *table;   // (16,) of FL_Q4 and FL_Q4_MIN: fl_matrix.values of what it is moved into
    void (*to_floats)(const uint8_t *block, float *out);
    int (*to_panel)(const uint8_t *block, uint16_t *scales, uint8_t *lines); // see blocks.c
} fl_block;

// The block types, and how many there are.
const fl_block *fl_blocks(size_t *count);

// Writes `count` blocks as floats, out (count * values,), on `threads` threads: ggml's operations in ggml's order, the
// same bits. `data` has any alignment.
void fl_dequantize(const fl_block *block, const void *data, size_t count, size_t threads, float *out);

// A matrix (d, n) as checkpoints have it, row-major: floats or blocks.
typedef struct fl_source {
    const void *data;      // (d, n), any alignment
    fl_type type;          // FL_F32, FL_F16 or FL_BF16
    const fl_block *block; // not NULL: the data are such blocks, and `type` says nothing
    size_t d, n;           // rows, columns; of blocks, n is a multiple of a block's values
    const int32_t *rows;   // (d,) row r of the result is row rows[r] of the source; NULL: rows in order

    const struct fl_kernels *kernels; // to compute with, from floats to FL_Q8 or FL_Q4

    // From floats to FL_Q4 only. With a calibration, h (n, n) is the sum of x x^T over its inputs x (n,), and fl_factor
    // has made of it U diag(importance) U^T. Without one, all are NULL.
    const float *importance;          // (n,) what a column's squared error counts; NULL: a guess from the weights
    const float *feedback;            // (n, n) U^T, of which the part below the diagonal is read; NULL: h is diagonal
    const float *products;            // (n, n) h, with feedback; NULL: each value is rounded once, not improved after
    const int8_t *values;             // (16,) ascending from -127, fl_matrix.values of the result; NULL: fl_q4_values.
                                      // If 0 is one of them, weights that are zero stay zero
} fl_source;

// Packs a source into `panels`, fl_matrix_bytes(type, d, n) long and FL_ALIGN-ed, on `threads` threads.
//   floats to FL_Q8: the f16 scale of least squared error, of nine from max |w| of the group / 127 to 4 % more (one
//                    step up where a subnormal scale would cut values off), values rounded to nearest even
//   floats to FL_Q4: the scale and codes of least squared error that a search finds; with a calibration, of the outputs
//                    (GPTQ, Frantar et al., 2023; LDLQ, Chee et al., 2023)
//   blocks to their type `packed`: bits are moved, and no weight is rounded, with two exceptions. A scale or minimum
//                    of more than f16's 11 bits (Q4_K, IQ4_XS), or below f16's smallest (MXFP4), is rounded to f16. Of
//                    a group of Q6_K, which has two scales there, the half with the larger values keeps its own, and
//                    the other is rounded to multiples of that one
// FL_BAD_TENSOR: the source cannot become this type, or `rows` names a row that it does not have. FL_BAD_VALUE: a
// weight is not finite, or too large for the type.
fl_status fl_pack(fl_type type, void *panels, const fl_source *source, size_t threads);

// Factors h (n, n), symmetric and positive definite, into U diag(importance) U^T with U unit upper triangular. U takes
// the place of the part of h above the diagonal; the rest of h is overwritten. importance: (n,). FL_BAD_VALUE: an
// element of the diagonal is not above 0 or not finite; then nothing is written.
fl_status fl_factor(size_t n, double *h, float *importance, size_t threads);

// Writes row r < d of a matrix as n floats, out (n,): the look-up of an embedding.
void fl_matrix_row(const fl_matrix *w, size_t r, float *out);

// 1 if the n floats at x are all finite, else 0.
int fl_finite(const float *x, size_t n);

// IEEE binary16 and bfloat16, as their bits. To 16 bits: rounded to nearest even; what is too large becomes infinity.
uint16_t fl_f16_from_f32(float x);
float fl_f32_from_f16(uint16_t h);
uint16_t fl_bf16_from_f32(float x);
float fl_f32_from_bf16(uint16_t h);

// ---- instruction sets ----------------------------------------------------------------------------------------------

// The kernels of one instruction set. All sets give the same bits.
typedef struct fl_kernels fl_kernels;

// The kernels of the named instruction set: "scalar", "avx2", "avxvnni", "avx512", "amx", "neon"; or, name being NULL
// or "", of the best one that was built and that both CPU and operating system support. FL_NO_ISA: there is none.
fl_status fl_kernels_find(const char *name, const fl_kernels **out);
const char *fl_kernels_name(const fl_kernels *k);

// The name of instruction set number i of those built in, worst first, and whether this machine can run it. NULL past
// the last.
const char *fl_isa_built(size_t i, int *supported);

// ---- kernels on their own ------------------------------------------------------------------------------------------

// out (t, d rounded up to 16) = x w^T, x (t, n), on `threads` threads; without w's bias. FL_NO_MEMORY.
fl_status fl_multiply(const fl_kernels *k, const fl_matrix *w, const float *x, size_t tokens, size_t threads,
                      float *out);

// The activation of a dense layer. GELU is the exact one, by erf.
typedef enum fl_dense_act {
    FL_DENSE_IDENTITY = 0,
    FL_DENSE_TANH,
    FL_DENSE_SIGMOID,
    FL_DENSE_GELU,
    FL_DENSE_RELU,
    FL_DENSE_SILU,
} fl_dense_act;

// A layer of a head that is not the model's, such as a classifier's: out (t, d rounded up to 16) = act(x w^T + bias), x
// (t, n). FL_NO_MEMORY.
fl_status fl_dense(const fl_kernels *k, const fl_matrix *w, fl_dense_act act, const float *x, size_t tokens,
                   size_t threads, float *out);

// Attention of one head: out (rows, head_dim), row r being that of query q[r] (rows, head_dim) to the first seen[r] of
// n keys and values (n, head_dim), 1 <= seen[r] <= n, which are stored as kv_type, FL_F32 or FL_F16. Queries are scaled
// already. FL_NO_MEMORY.
fl_status fl_attend_rows(const fl_kernels *k, fl_type kv_type, size_t rows, size_t n, size_t head_dim, const float *q,
                         const float *keys, const float *values, const size_t *seen, float *out);

// ---- model ---------------------------------------------------------------------------------------------------------

// RMS norm (Zhang and Sennrich, 2019) or layer norm (Ba et al., 2016).
typedef enum fl_norm_kind { FL_RMS_NORM = 0, FL_LAYER_NORM } fl_norm_kind;

// SiLU (Elfwing et al., 2018); GELU (Hendrycks and Gimpel, 2016) by tanh, by erf, and as x sigmoid(1.702 x); ReLU.
typedef enum fl_act { FL_SILU = 0, FL_GELU_TANH, FL_GELU_ERF, FL_QUICK_GELU, FL_RELU } fl_act;

// Norms of queries and keys before they rotate: of each head, or of the row of all heads.
typedef enum fl_qk_norm { FL_QK_NONE = 0, FL_QK_HEAD, FL_QK_ROW } fl_qk_norm;

// What a family of models is: dimensions and flags. Fields that a model does not need are 0, but factors are then 1,
// and mask_token and pad_token -1.
typedef struct fl_config {
    size_t dim;        // width of the residual stream
    size_t hidden_dim; // width inside the feed-forward
    size_t head_dim;
    size_t n_layers, n_heads, n_kv_heads; // n_heads / n_kv_heads query heads share a KV head (Ainslie et al., 2023)
    size_t vocab_size;
    size_t max_seq;    // the context: positions of a sequence
    size_t rotary_dim; // the first rotary_dim channels of a head rotate (Su et al., 2021), in pairs (i, i + half of it)
    float norm_eps;
    float attn_scale;  // of query . key, usually 1 / sqrt(head_dim)

    fl_norm_kind norm;
    fl_act act;
    fl_qk_norm qk_norm;
    int causal;           // a token sees those before it; else all of its sequence, which must come in one span
    int parallel;         // attention and feed-forward read the same stream (no norms of what they add to it, then)
    int norm_after;       // attn_norm and ffn_norm come after the additions to the stream, not before the branches
    float rope_scale;     // of the cosines and sines of rope_freqs[0]
    float attn_softcap;   // scores become cap * tanh(score / cap); 0: none
    float logit_scale, logit_softcap;
    float embed_scale;    // of embeddings
    float residual_scale; // of what a branch adds to the stream
    size_t n_experts, n_experts_used, expert_dim; // mixture of experts (Shazeer et al., 2017)
    int moe_renormalize;  // the chosen experts' probabilities are made to sum to 1
    size_t positions;     // rows of the table of learned positions, max_seq or more; 0: none
    int second_segment;   // the table has as many rows again, for the tokens of a second segment (BERT's token type 1)
    int32_t mask_token;   // its embedding is zero, and the others of its span are scaled up for it (ESM-2); -1: none
    int32_t pad_token;    // no token sees it (Grok-1); -1: none
    int precise;          // activations enter products of int8 weights with 15 bits instead of 8, at twice the work
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
    fl_norm ffn_norm;              // with `parallel` and without a weight: the feed-forward takes attn_norm
    fl_matrix w1, w3;              // gate, up: (hidden_dim, dim); without w3: act(w1 x). With experts: the shared one
    fl_matrix w2;                  // down: (dim, hidden_dim)
    fl_norm post_ffn_norm;         // of what the feed-forward adds to the stream
    fl_matrix router;              // (n_experts, dim), FL_F32: this layer has experts
    fl_matrix e1, e3, e2;          // of expert 0: (expert_dim, dim) twice, (dim, expert_dim); the others' follow each
    fl_matrix shared_gate;         // (1, dim), floats: the shared expert is weighed by its sigmoid
    size_t window;                 // a token sees those less than `window` positions away; 0: all
    size_t rope;                   // 0: no rotation, else by rope_freqs[rope - 1]
    size_t kind, place;            // written by fl_model_check: its kind, and how many layers of that come before it
} fl_layer;

// The layers of a model that have one window. They share pages.
typedef struct fl_kind {
    size_t window, layers;
} fl_kind;

// Learns on how many threads forwards of one model are fastest, or draws: no more than there are CPUs for this process,
// and fewer while other programs keep some of those busy. What runs beside another that it learns from neither uses nor
// teaches it. FL_NO_MEMORY.
typedef struct fl_pace fl_pace;
fl_status fl_pace_new(fl_pace **out);
void fl_pace_free(fl_pace *pace);

// A model. It owns nothing that it points to.
typedef struct fl_model {
    fl_config config;
    const fl_kernels *kernels;
    fl_type kv_type;              // FL_F32, FL_F16, FL_Q8 or FL_Q4: how pages hold keys and values
    fl_matrix embed;              // (vocab_size, dim)
    fl_matrix positions;          // (positions, dim), twice as many rows with second_segment
    fl_norm embed_norm;
    fl_norm final_norm;
    fl_matrix head_dense;         // (dim, dim), then act and head_norm: before the head
    fl_norm head_norm;
    fl_matrix head;               // (vocab_size, dim); the embedding itself where the two are tied; none: no logits
    const float *rope_freqs[2];   // (rotary_dim / 2,) radians per position
    fl_layer *layers;             // (n_layers,)
    fl_kind *kinds;               // (n_kinds,) written by fl_model_check, with room for n_layers
    size_t n_kinds;               // written by fl_model_check: kinds of layers, in the order of their first layers
    fl_pace *pace;                // NULL: forwards run on exactly as many threads as are asked for
} fl_model;

// Whether a model can be run; and finds the kinds of its layers. FL_BAD_CONFIG: the config is that of no model.
// FL_BAD_TENSOR: a matrix or norm that it needs is missing, or its shape, type or alignment is not what it must be. All
// other functions rely on this check.
fl_status fl_model_check(fl_model *m);

// ---- pages ---------------------------------------------------------------------------------------------------------

// Bytes of a page of a model's kind, a multiple of 64. A page begins at a multiple of 64 positions. For each layer of
// the kind and each KV head it holds keys, then values, as kv_type: FL_Q8 takes 9 bits a key and 8 + 32 / head_dim a
// value, FL_Q4 6.5 and 4.5, scales included, where head_dim is a multiple of 32. At its end, with a
// pad_token, are 64 f32: what is added to the scores of each position. See pages.h.
size_t fl_kv_page_bytes(const fl_model *m, size_t kind);

// A pool of pages of several kinds, of page_bytes[kind] each; a limit for the bytes of all pages in use, at first none.
// It grows in slabs of several pages, gives slabs that are not in use back to the system, but for one, and at the end
// all. One thread at a time may use it: callers hold a lock. FL_NO_MEMORY.
typedef struct fl_pool fl_pool;
fl_status fl_pool_new(size_t kinds, const size_t *page_bytes, fl_pool **out); // page_bytes: (kinds,) above 0
void fl_pool_free(fl_pool *pool);
void fl_pool_limit(fl_pool *pool, size_t bytes); // below what is in use: no page is taken until enough are given back
size_t fl_pool_used(const fl_pool *pool);        // bytes of pages in use

// A page in use, by its number in the pool.
typedef uint32_t fl_page;

// Takes a page of a kind, with one reference. It holds whatever an earlier sequence left in it. FL_NO_PAGES: the limit
// does not allow it. FL_NO_MEMORY.
fl_status fl_pool_take(fl_pool *pool, size_t kind, fl_page *page);
void fl_pool_hold(fl_pool *pool, fl_page page); // adds a reference
void fl_pool_give(fl_pool *pool, fl_page page); // takes one away; the last one's page is free
size_t fl_pool_references(const fl_pool *pool, fl_page page);
void *fl_pool_data(const fl_pool *pool, fl_page page); // its bytes, FL_ALIGN-ed, at the same place while it is in use

// ---- forward -------------------------------------------------------------------------------------------------------

typedef struct fl_span {
    const int32_t *tokens; // (n,)
    size_t n;              // 1 or more
    size_t pos;            // position of tokens[0]: how many the sequence already holds
    void *const *const *pages; // for each kind (n_pages,) the sequence's: page i has positions 64 i to 64 i + 63. NULL
                               // where the kind has a window, and all of the page lies left of what tokens[0] sees
    size_t n_pages;            // enough for pos + n positions
    size_t n_logits;       // logits are computed for the last n_logits tokens of the span; 0 to n
    size_t segment;        // tokens from here on are of the second segment; n: none are
} fl_span;

// Working memory of forwards of one model, one for each call that runs at the same time. It grows with the largest
// forward, and never shrinks. FL_NO_MEMORY.
typedef struct fl_scratch fl_scratch;
fl_status fl_scratch_new(fl_scratch **out);
void fl_scratch_free(fl_scratch *s);

// Floats from one row of logits to the next: vocab_size rounded up to 16. The floats past vocab_size are zero, or NaN
// in a row that is not finite.
size_t fl_logits_stride(const fl_model *m);

// What a forward writes; NULL for what is not wanted. Tokens are those of all spans, in their order.
typedef struct fl_outputs {
    float *logits;           // (sum of n_logits, fl_logits_stride), FL_ALIGN-ed
    float *const *hidden;    // n_layers + 2 pointers, each NULL or (tokens, dim): the stream before layer 0, after each
                             // layer, and after the final norm
    float *const *attention; // n_layers pointers, each NULL or for each span (n_heads, n, pos + n): probabilities
    float *const *inputs;    // 4 n_layers pointers, each NULL or (tokens, n): the inputs of wq, wk and wv; of wo; of w1
                             // and w3; of w2 of each layer. Those of layers with experts are not written
} fl_outputs;

// A flag that ends forwards early, at first clear. Any thread may set, clear and read it at any time. FL_NO_MEMORY.
typedef struct fl_cancel fl_cancel;
fl_status fl_cancel_new(fl_cancel **out);
void fl_cancel_free(fl_cancel *cancel);
void fl_cancel_set(fl_cancel *cancel, int on);
int fl_cancel_is_set(const fl_cancel *cancel);

// What ends a forward early. It is looked at many times in each layer.
typedef struct fl_watch {
    const fl_cancel *flag;  // NULL, or: when it is set
    int (*ask)(void *arg);  // NULL, or: when it returns not 0. The thread that called fl_forward calls it, about every
    void *arg;              // 30 ms
} fl_watch;

// Runs a batch through the model (Vaswani et al., 2017): appends the keys and values of its tokens to the sequences'
// pages, and writes what is wanted. No sequence may be in a batch twice. Runs on up to 256 threads, one being the
// caller.
//
// The result is the same to the bit however tokens are split into batches and however many threads run. Where a broken
// model or an overflow makes NaN or infinity, whatever depends on it is not finite, and nothing else: neither other
// spans nor the tokens before. Which NaN it is, sign and payload, may differ between machines and batches.
//
// FL_BAD_POSITION: a span's positions, pages, n_logits or segment are not as above, or a model that is not causal is
// given only a part of a sequence. FL_BAD_TOKEN. FL_BAD_TENSOR: logits of a model without a head. FL_NO_MEMORY. In
// these cases nothing is written. FL_CANCELLED: `watch`, which may be NULL, has ended it. Then the outputs, and the
// positions of pages from the spans' `pos` on, hold nothing of use.
fl_status fl_forward(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t threads,
                     const fl_watch *watch, const fl_outputs *out);

// The logits of n rows (n, dim) of the stream, as a forward wrote them to its outputs: logits (n, fl_logits_stride),
// FL_ALIGN-ed. With `norm` they are those that a forward gives after the last layer: final norm, head, scale and cap.
// Without it they are the head's matrix and bias alone, as DoLa's early exits are. A row that is not finite gives
// logits that are not. FL_BAD_TENSOR: the model has no head. FL_NO_MEMORY.
fl_status fl_head(const fl_model *m, fl_scratch *s, const float *rows, size_t n, int norm, size_t threads,
                  float *logits);

// ---- sampler -------------------------------------------------------------------------------------------------------

// The filters of a draw, in their default order: that of the transformers library, and between them those that it does
// not have.
enum fl_filter {
    FL_TEMPERATURE = 1,
    FL_TOP_N_SIGMA,
    FL_TOP_H,
    FL_TOP_K,
    FL_TOP_P,
    FL_MIN_P,
    FL_TYPICAL_P,
    FL_EPSILON_CUTOFF,
    FL_ETA_CUTOFF,
    FL_XTC,
    FL_MIROSTAT,
    FL_FILTERS = FL_MIROSTAT
};

typedef struct fl_sampling {
    float temperature;        // below 1e-6: the most likely token; else logits are divided by it
    size_t top_k;             // keep the k most likely (Fan et al., 2018); 0: all
    float top_p;              // nucleus sampling (Holtzman et al., 2020): keep the smallest set whose probability
                              // exceeds it; outside (0, 1): all
    float min_p;              // keep tokens at least min_p times as likely as the best (Nguyen et al., 2024); 0: all
    float typical_p;          // locally typical sampling (Meister et al., 2022); outside (0, 1): all
    float repetition_penalty; // of logits of tokens seen in prompt or text (Keskar et al., 2019); 1: none
    float presence_penalty;   // subtracted once from the logit of a token that was generated
    float frequency_penalty;  // subtracted as often as a token was generated
    size_t penalty_window;    // these three look at so many last tokens; 0: all
    size_t no_repeat_ngram_size; // tokens are forbidden that complete so many that are in prompt or text; 0: none
    // DRY (see history.c): 0: none; llama.cpp's names.
    float dry_multiplier, dry_base;
    size_t dry_allowed_length, dry_last_n; // dry_last_n: it looks at so many last tokens; SIZE_MAX: all
    float dynatemp_range;    // the temperature is as far lower or higher as the entropy says (see filters.c); 0: fixed
    float dynatemp_exponent; // of the entropy's share of the largest possible one
    float top_n_sigma;       // keep logits up to so many standard deviations below the best (Tang et al., 2024); 0: all
    float top_h;             // bounds the entropy of what is kept (Potraghloo et al., 2025); 0: all
    float epsilon_cutoff;    // keep tokens of at least that probability (Hewitt et al., 2022); outside (0, 1): all
    float eta_cutoff;        // the same, less where the entropy is large (Hewitt et al., 2022); outside (0, 1): all
    float xtc_probability, xtc_threshold; // with that chance, exclude all but the last of the tokens that hold at least
                                          // the threshold each (p-e-w, 2024); 0: never
    float mirostat_tau, mirostat_eta;     // mirostat 2 (Basu et al., 2021): surprise in bits, learning rate; 0: off
    uint8_t order[FL_FILTERS];            // fl_filter; zeros behind: these alone; all 0: the default order
} fl_sampling;

// Draws the tokens of one text. Of the text it keeps the tokens it has seen, each once; with options that look at their
// order also all of them; without any, only how many were generated.
// The same seed and logits give the same tokens. FL_BAD_CONFIG: a vocabulary of none, or of 2^31 or more. FL_NO_MEMORY.
// What follows up to fl_sampler_watermark, but for fl_sampler_next, is called before the first token is accepted.
typedef struct fl_sampler fl_sampler;
fl_status fl_sampler_new(size_t vocab_size, const fl_sampling *params, uint64_t seed, fl_sampler **out);
void fl_sampler_free(fl_sampler *s);

// Adds `bias` to the logit of the last of tokens (n,) wherever the text ends with those before it: for one token, in
// every draw. FL_BAD_TOKEN, FL_NO_MEMORY.
fl_status fl_sampler_bias(fl_sampler *s, const int32_t *tokens, size_t n, float bias);

// Bars tokens (n,) until so many tokens have been accepted as generated: they cannot be drawn before. FL_BAD_TOKEN,
// FL_NO_MEMORY.
fl_status fl_sampler_bar(fl_sampler *s, const int32_t *tokens, size_t n, size_t until);

// Of tokens (n,) one is drawn, whatever the logits, when `at` tokens have been generated. FL_BAD_TOKEN, FL_NO_MEMORY.
fl_status fl_sampler_force(fl_sampler *s, const int32_t *tokens, size_t n, size_t at);

// The next n draws give tokens (n,), whatever the logits and options, and use no random number: as soon as each is
// accepted as generated, the one after it is next. Takes the place of those that an earlier call has left. It may be
// called at any time. FL_BAD_TOKEN, FL_NO_MEMORY.
fl_status fl_sampler_next(fl_sampler *s, const int32_t *tokens, size_t n);

// Raises the logits of tokens (n,) by |logit| (factor^i - 1) in draw i after `start` generated tokens. FL_BAD_TOKEN,
// FL_NO_MEMORY.
fl_status fl_sampler_decay(fl_sampler *s, const int32_t *tokens, size_t n, size_t start, float factor);

// DRY takes nothing before tokens (n,) for a repetition of what comes after them. FL_BAD_TOKEN, FL_NO_MEMORY.
fl_status fl_sampler_break(fl_sampler *s, const int32_t *tokens, size_t n);

// A watermark: after each text some tokens are green, a pseudorandom share `ratio` of all, and their logits are raised
// by `bias` once the filters are through (Kirchenbauer et al., 2023). The lists are those of the transformers library.
// They depend on the key and the last of `width` tokens before; with selfhash on width - 1 tokens before and the token
// itself. FL_BAD_CONFIG: no such vocabulary, ratio or width. FL_NO_MEMORY.
typedef struct fl_watermark fl_watermark;
fl_status fl_watermark_new(size_t vocab_size, double ratio, float bias, uint64_t key, int selfhash, size_t width,
                           fl_watermark **out);
void fl_watermark_free(fl_watermark *m);

// Whether a token is green after context: (width,) tokens, or with selfhash (width - 1,). FL_BAD_TOKEN, FL_NO_MEMORY.
fl_status fl_watermark_green(const fl_watermark *m, const int32_t *context, int32_t token, int *green);

// The sampler's vocabulary is the watermark's, which has to live as long as it and its copies.
void fl_sampler_watermark(fl_sampler *s, const fl_watermark *watermark);

// A sampler in the same state, which goes on as this one would. FL_NO_MEMORY.
fl_status fl_sampler_copy(const fl_sampler *s, fl_sampler **out);

// Tells the sampler of a token of the prompt (generated 0) or of the text (generated 1). FL_BAD_TOKEN, FL_NO_MEMORY.
fl_status fl_sampler_accept(fl_sampler *s, int32_t token, int generated);

// Working memory of draws by any samplers, one for each call that runs at the same time. It has a part for each worker,
// which that worker allocates when it first needs it: some 48 bytes for each token of the vocabulary, and 60 KB. It
// never shrinks. FL_NO_MEMORY.
typedef struct fl_draw_scratch fl_draw_scratch;
fl_status fl_draw_scratch_new(fl_draw_scratch **out);
void fl_draw_scratch_free(fl_draw_scratch *scratch);

// Draws a token from logits (vocab_size,), readable to the next multiple of 16: biases, penalties, DRY, n-grams, bars,
// forced tokens, decay, the mask of an fl_draw; then the filters in their order, and the watermark. The tokens that
// these leave are walked by descending probability, or by typicality where that is the last filter, lowest id first
// among equals; without any filter in the order of the vocabulary. Uses one random number, two with XTC, or none if the
// most likely token is asked for. Sums of probabilities are doubles: exact as long as none is less than 2^-29 of the
// sum; else they round in an order that follows from the logits and options alone. FL_BAD_VALUE: a logit is not finite.
// FL_BAD_TOKEN: after biases and penalties the largest is not, so that there is no token to draw. FL_NO_MEMORY. A draw
// that fails leaves the sampler as it was.
fl_status fl_sampler_draw(fl_sampler *s, fl_draw_scratch *scratch, const fl_kernels *k, const float *logits,
                          int32_t *token);

// The draws of one text from consecutive rows of logits: from each row in turn, as long as the token drawn from the row
// before is the guess that this row was computed for. Each token is accepted as generated.
//
//     logits   row 0          row 1            row 2             n_guesses = 2
//     guesses       17             4
//     tokens   17   right: go on   5   wrong: the end            n_tokens = 2
typedef struct fl_draw {
    fl_sampler *sampler;    // in one draw of a call only
    const float *logits;    // (n_guesses + 1, vocab_size rounded up to 16)
    int processed;          // the caller has changed the logits: in these, -infinity forbids a token
    const uint32_t *const *masks; // NULL, or for each row NULL or ((vocab_size + 31) / 32,): bit i & 31 of word i / 32
                                  // allows token i; where one alone is allowed, it takes no random number
    const int32_t *guesses; // (n_guesses,)
    size_t n_guesses;
    int32_t *tokens;  // (n_guesses + 1,) written
    size_t n_tokens;  // written: how many were drawn
    fl_status status; // written: of the first row, as fl_sampler_draw's; a later row that fails only ends the draws,
                      // and fails again when it is the first
} fl_draw;

// Draws for several texts on `threads` threads, or on fewer where `pace`, of draws alone, has found fewer faster; NULL:
// on exactly as many. The tokens are those of fl_sampler_draw one by one.
void fl_draw_all(fl_draw_scratch *scratch, const fl_kernels *k, fl_draw *draws, size_t n, size_t threads,
                 fl_pace *pace);

// On how many of `threads` threads fl_draw_all should run: fewer where the work is too little to start more.
size_t fl_draw_threads(const fl_draw *draws, size_t n, size_t threads);

// Logarithms (natural) of the probabilities that logits (vocab,), readable to the next multiple of 16, give by softmax:
// of a token and of the `top` likeliest. tokens (top + 1,): [0] is the token; the others are written, the likeliest
// first, lowest id first among equals. out (top + 1,): theirs. Exponentials are floats, sums doubles in one order: the
// error is some units in the last place of a float, and the bits are the same on every instruction set. FL_BAD_TOKEN:
// the token is not below vocab, or `top` exceeds it. FL_BAD_VALUE: a logit is not finite. FL_NO_MEMORY.
fl_status fl_logprobs(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, size_t vocab, size_t top,
                      int32_t *tokens, double *out);

// ---- contrasts -----------------------------------------------------------------------------------------------------
//
// What weighs the predictions of a model against each other. Rows of logits are (vocab rounded up to 16,). Of bits the
// same holds as of draws: they are the same on every instruction set and any number of threads.

// Classifier-free guidance (Sanchez et al., 2023): out = scale (ln p - ln q) + ln q, p and q being the probabilities of
// logits and `other`. `out` may be one of them. FL_BAD_VALUE: a logit is not finite. FL_NO_MEMORY.
fl_status fl_guide(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, const float *other,
                   size_t vocab, float scale, float *out);

// DoLa (Chuang et al., 2023), as the transformers library has it: of n >= 1 rows of `exits`, logits of early exits, it
// takes the one whose probabilities q differ most from p, those of `logits`, by Jensen-Shannon divergence, the first
// among equals. out = ln p - ln q where p is at least a tenth of the largest, else -infinity. `out` may be `logits`.
// pace: as of fl_draw_all. FL_BAD_VALUE: a logit is not finite. FL_NO_MEMORY.
fl_status fl_dola(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, const float *exits, size_t n,
                  size_t vocab, size_t threads, fl_pace *pace, float *out);

// The up to `most` likeliest tokens after logits, likeliest first, lowest id first among equals, and their
// probabilities, after all that the sampler's history does to logits, mask and watermark: tokens and probs (most,), *n
// of them. What is forbidden is not among them. processed, mask: as of an fl_draw; mask NULL: all are allowed.
// FL_BAD_VALUE: a logit is not finite. FL_BAD_TOKEN: there is no token. FL_NO_MEMORY.
fl_status fl_likeliest(const fl_sampler *s, fl_draw_scratch *scratch, const fl_kernels *k, const float *logits,
                       int processed, const uint32_t *mask, size_t most, int32_t *tokens, double *probs,
                       size_t *n);

// Row r of an FL_F32 matrix of n columns, whose panels these are, becomes x (n,) divided by its length; zeros stay so.
void fl_unit_row(float *panels, size_t n, size_t r, const float *x);

// The degeneration penalties of contrastive search (Su et al., 2022): out[i] is the largest cosine of row i of x (n,
// context->n) and any of the first `count` >= 1 rows of an FL_F32 matrix, which fl_unit_row wrote; NaN where one of
// these is not finite. Runs on fewer than `threads` threads where there is little to read. FL_NO_MEMORY.
fl_status fl_degeneration(const fl_kernels *k, const fl_matrix *context, size_t count, const float *x, size_t n,
                          size_t threads, float *out);

// ---- beams ---------------------------------------------------------------------------------------------------------

// A token that may follow a beam, and the score of the text with it.
typedef struct fl_follower {
    size_t beam;
    int32_t token;
    float score;
} fl_follower;

// One of several texts that a search goes on with.
typedef struct fl_beam {
    fl_sampler *sampler; // of this beam alone; it is not changed, but for scratch of its own
    const float *logits; // (vocab_size,) readable to the next multiple of 16
    float *scores;       // (vocab_size rounded up to 16,) FL_ALIGN-ed, written: of the text with each token
    float score;         // of the text so far
    int processed;       // scores are log probabilities that the caller has changed; logits are not read
    const uint32_t *mask; // NULL, or which tokens are allowed: see fl_draw
    fl_follower *best;   // (most,) written, unless tokens are drawn: the n_best best, lowest id first among equals
    size_t n_best;
    float *sums; // (vocab_size / 256 + 1,) written, where tokens are drawn: of exp(score - max), 256 tokens each
    float max;   // the largest score
    double weight;
    fl_status status; // written: FL_BAD_VALUE: a logit is not finite. FL_NO_MEMORY
} fl_beam;

typedef struct fl_scoring {
    size_t most;          // followers wanted of all beams together
    int samples;          // they are drawn, by fl_beams_draw; else they are the best, by fl_beams_best
    size_t keep;          // where they are drawn: tokens that filters leave each beam at least
    const int32_t *taken; // (n_taken,) tokens that lose `penalty`, as often as they are here
    size_t n_taken;
    float penalty;
} fl_scoring;

// The scores of what may follow beams: the log softmax of logits, less `taken`; what the sampler does to logits, and
// the mask; where tokens are drawn its filters, which may forbid tokens, and the temperature; then the watermark and
// the score so far. Forbidden tokens have -infinity. Mirostat and XTC are off. Runs on up to `threads` threads, on as
// many as pay off.
void fl_beams_score(fl_draw_scratch *scratch, const fl_kernels *k, fl_beam *beams, size_t n, const fl_scoring *how,
                    size_t threads, fl_pace *pace);

// Writes the up to `most` best followers of scored beams to out (most,), the best first; of equals those of the first
// beam, lowest id first. Returns how many there are.
size_t fl_beams_best(const fl_beam *beams, size_t n, size_t most, fl_follower *out);

// The same, drawn without replacement: each with probabilities in proportion to exp(score) of those that are left. The
// best first; of equals the one that was drawn first. state: of random numbers, a seed at first, never 0; it moves on
// by one for each. Scores of those that were drawn become -infinity.
size_t fl_beams_draw(const fl_kernels *k, fl_beam *beams, size_t n, size_t vocab, size_t most, uint64_t *state,
                     fl_follower *out);

// out (vocab,) = the log softmax of logits, readable to the next multiple of 16. FL_BAD_VALUE: a logit is not finite.
// FL_NO_MEMORY.
fl_status fl_log_softmax(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, size_t vocab, float *out);

// ---- the machine ---------------------------------------------------------------------------------------------------

// Zeroed memory, FL_ALIGN-ed and untouched until it is written; in huge pages where the system gives them on request.
// NULL: there is none. fl_free takes NULL.
void *fl_alloc(size_t bytes);
void fl_free(void *p);

// A file that is mapped read-only, as a whole: `fd` may be closed after; an empty file is EINVAL. It stays safe to read
// when the file is cut short meanwhile: zeros are read then, and the state says so. fl_mapping_new returns 0 or an
// errno. Of the functions that make, free and guard mappings, one may run at a time. fl_mapping_free takes NULL.
typedef struct fl_mapping fl_mapping;
int fl_mapping_new(int fd, fl_mapping **out);
void fl_mapping_free(fl_mapping *m);
const void *fl_mapping_data(const fl_mapping *m);
size_t fl_mapping_bytes(const fl_mapping *m);
int fl_mapping_fd(const fl_mapping *m); // a descriptor of the file, open as long as the mapping is

typedef enum fl_file_state {
    FL_FILE_SAME = 0,
    FL_FILE_TRUNCATED,
    FL_FILE_CHANGED,    // written to, by its length and time
    FL_FILE_UNREADABLE, // the disk or the network failed
} fl_file_state;

// What has become of the file since it was mapped. It takes a system call.
fl_file_state fl_mapping_state(const fl_mapping *m);

// The same for callers that ask after every token: it asks the system only when its last time was a tenth of a
// millisecond or more ago, and calls the file unchanged until then. Zeros that were read in place of the file are
// always noticed.
fl_file_state fl_mapping_glance(fl_mapping *m);

// To be called before a mapping is read: another library may have put a handler of SIGBUS of its own in place of ours
// since; this puts ours in front of it again.
void fl_mapping_guard(void);

// Reads `bytes` bytes at p on `threads` threads, to measure bandwidth. The sum that it returns only keeps the compiler
// from leaving the reads out.
uint64_t fl_read(const void *p, size_t bytes, size_t threads);

// Does int8 multiply-adds on `threads` threads, by the instruction set's best instruction and without memory, to
// measure its peak. Returns how many: in proportion to `rounds` and threads.
uint64_t fl_int8_peak(const fl_kernels *k, size_t rounds, size_t threads);

// Starts `threads` threads at once, the caller being one, and ends them. Returns 0, or the errno with which one did not
// start.
int fl_try_threads(size_t threads);

// 1 if the build has OpenMP, else 0: then everything runs on one thread.
int fl_has_threads(void);

#endif
