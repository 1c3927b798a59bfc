# What pyx/ uses of csrc/fastllm.h, in its order; that file explains everything. Structs that _core builds have all of
# their fields here, because Cython leaves a field that it does not know uninitialized.
from libc.stdint cimport int8_t, int32_t, uint32_t, uint64_t

cdef extern from "fastllm.h" nogil:
    ctypedef enum fl_status:
        FL_OK
        FL_NO_MEMORY
        FL_BAD_CONFIG
        FL_BAD_TENSOR
        FL_BAD_TOKEN
        FL_BAD_POSITION
        FL_BAD_VALUE
        FL_NO_ISA
        FL_NO_PAGES
        FL_CANCELLED

    # ---- sizes of the layouts

    enum:
        FL_LANES
        FL_GROUP
        FL_PAGE
        FL_ALIGN

    size_t fl_round_up(size_t n, size_t to)

    # ---- weights

    ctypedef enum fl_type:
        FL_F32
        FL_F16
        FL_BF16
        FL_Q8
        FL_Q4
        FL_Q4_MIN

    const int8_t fl_q4_values[16]

    ctypedef struct fl_matrix:
        const void *data
        fl_type type
        size_t d
        size_t n
        const float *bias
        int8_t values[16]

    size_t fl_matrix_bytes(fl_type type, size_t d, size_t n)

    ctypedef struct fl_kernels:
        pass

    ctypedef struct fl_block:
        const char *name
        size_t values
        size_t bytes
        fl_type packed
        const int8_t *table

    ctypedef struct fl_source:
        const void *data
        fl_type type
        const fl_block *block
        size_t d
        size_t n
        const int32_t *rows
        const fl_kernels *kernels
        const float *importance
        const float *feedback
        const float *products
        const int8_t *values

    fl_status fl_pack(fl_type type, void *panels, const fl_source *source, size_t threads)
    fl_status fl_factor(size_t n, double *h, float *importance, size_t threads)
    void fl_matrix_row(const fl_matrix *w, size_t r, float *out)
    int fl_finite(const float *x, size_t n)
    const fl_block *fl_blocks(size_t *count)
    void fl_dequantize(const fl_block *block, const void *data, size_t count, size_t threads, float *out)

    # ---- instruction sets

    fl_status fl_kernels_find(const char *name, const fl_kernels **out)
    const char *fl_kernels_name(const fl_kernels *k)
    const char *fl_isa_built(size_t i, int *supported)
    fl_status fl_multiply(const fl_kernels *k, const fl_matrix *w, const float *x, size_t tokens, size_t threads,
                          float *out)

    ctypedef enum fl_dense_act:
        pass

    fl_status fl_dense(const fl_kernels *k, const fl_matrix *w, fl_dense_act act, const float *x, size_t tokens,
                       size_t threads, float *out)
    fl_status fl_attend_rows(const fl_kernels *k, fl_type kv_type, size_t rows, size_t n, size_t head_dim,
                             const float *q, const float *keys, const float *values, const size_t *seen, float *out)

    # ---- model

    ctypedef enum fl_norm_kind:
        pass
    ctypedef enum fl_act:
        pass
    ctypedef enum fl_qk_norm:
        pass

    ctypedef struct fl_config:
        size_t dim
        size_t hidden_dim
        size_t head_dim
        size_t n_layers
        size_t n_heads
        size_t n_kv_heads
        size_t vocab_size
        size_t max_seq
        size_t rotary_dim
        float norm_eps
        float attn_scale
        fl_norm_kind norm
        fl_act act
        fl_qk_norm qk_norm
        bint causal
        bint parallel
        bint norm_after
        float rope_scale
        float attn_softcap
        float logit_scale
        float logit_softcap
        float embed_scale
        float residual_scale
        size_t n_experts
        size_t n_experts_used
        size_t expert_dim
        bint moe_renormalize
        size_t positions
        int second_segment
        int32_t mask_token
        int32_t pad_token
        int precise

    ctypedef struct fl_norm:
        const float *weight
        const float *bias

    ctypedef struct fl_layer:
        fl_norm attn_norm
        fl_matrix wq
        fl_matrix wk
        fl_matrix wv
        const float *q_norm
        const float *k_norm
        fl_matrix wo
        fl_norm post_attn_norm
        fl_norm ffn_norm
        fl_matrix w1
        fl_matrix w3
        fl_matrix w2
        fl_norm post_ffn_norm
        fl_matrix router
        fl_matrix e1
        fl_matrix e3
        fl_matrix e2
        fl_matrix shared_gate
        size_t window
        size_t rope
        size_t kind
        size_t place

    ctypedef struct fl_kind:
        size_t window
        size_t layers

    ctypedef struct fl_pace:
        pass

    fl_status fl_pace_new(fl_pace **out)
    void fl_pace_free(fl_pace *pace)

    ctypedef struct fl_model:
        fl_config config
        const fl_kernels *kernels
        fl_type kv_type
        fl_matrix embed
        fl_matrix positions
        fl_norm embed_norm
        fl_norm final_norm
        fl_matrix head_dense
        fl_norm head_norm
        fl_matrix head
        const float *rope_freqs[2]
        fl_layer *layers
        fl_kind *kinds
        size_t n_kinds
        fl_pace *pace

    fl_status fl_model_check(fl_model *m)

    # ---- KV cache

    ctypedef struct fl_pool:
        pass

    size_t fl_kv_page_bytes(const fl_model *m, size_t kind)
    fl_status fl_pool_new(size_t kinds, const size_t *page_bytes, fl_pool **out)
    void fl_pool_free(fl_pool *pool)
    void fl_pool_limit(fl_pool *pool, size_t bytes)
    size_t fl_pool_used(const fl_pool *pool)

    ctypedef uint32_t fl_page

    fl_status fl_pool_take(fl_pool *pool, size_t kind, fl_page *page)
    void fl_pool_hold(fl_pool *pool, fl_page page)
    void fl_pool_give(fl_pool *pool, fl_page page)
    size_t fl_pool_references(const fl_pool *pool, fl_page page)
    void *fl_pool_data(const fl_pool *pool, fl_page page)

    # ---- forward

    ctypedef struct fl_span:
        const int32_t *tokens
        size_t n
        size_t pos
        void *const *const *pages
        size_t n_pages
        size_t n_logits
        size_t segment

    ctypedef struct fl_scratch:
        pass

    fl_status fl_scratch_new(fl_scratch **out)
    void fl_scratch_free(fl_scratch *s)
    size_t fl_logits_stride(const fl_model *m)

    ctypedef struct fl_outputs:
        float *logits
        float *const *hidden
        float *const *attention
        float *const *inputs

    ctypedef struct fl_cancel:
        pass

    fl_status fl_cancel_new(fl_cancel **out)
    void fl_cancel_free(fl_cancel *cancel)
    void fl_cancel_set(fl_cancel *cancel, int on)
    int fl_cancel_is_set(const fl_cancel *cancel)

    ctypedef struct fl_watch:
        const fl_cancel *flag
        int (*ask)(void *arg) noexcept
        void *arg

    fl_status fl_forward(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t threads,
                         const fl_watch *watch, const fl_outputs *out)
    fl_status fl_head(const fl_model *m, fl_scratch *s, const float *rows, size_t n, int norm, size_t threads,
                      float *logits)

    # ---- sampler

    enum: FL_FILTERS

    ctypedef struct fl_sampling:
        float temperature
        size_t top_k
        float top_p
        float min_p
        float typical_p
        float repetition_penalty
        float presence_penalty
        float frequency_penalty
        size_t penalty_window
        size_t no_repeat_ngram_size
        float dry_multiplier
        float dry_base
        size_t dry_allowed_length
        size_t dry_last_n
        float dynatemp_range
        float dynatemp_exponent
        float top_n_sigma
        float top_h
        float epsilon_cutoff
        float eta_cutoff
        float xtc_probability
        float xtc_threshold
        float mirostat_tau
        float mirostat_eta
        unsigned char order[FL_FILTERS]

    ctypedef struct fl_watermark:
        pass

    fl_status fl_watermark_new(size_t vocab_size, double ratio, float bias, uint64_t key, int selfhash, size_t width,
                               fl_watermark **out)
    void fl_watermark_free(fl_watermark *m)
    fl_status fl_watermark_green(const fl_watermark *m, const int32_t *context, int32_t token, int *green)

    ctypedef struct fl_sampler:
        pass
    fl_status fl_sampler_new(size_t vocab_size, const fl_sampling *params, uint64_t seed, fl_sampler **out)
    void fl_sampler_free(fl_sampler *s)
    fl_status fl_sampler_bias(fl_sampler *s, const int32_t *tokens, size_t n, float bias)
    fl_status fl_sampler_bar(fl_sampler *s, const int32_t *tokens, size_t n, size_t until)
    fl_status fl_sampler_force(fl_sampler *s, const int32_t *tokens, size_t n, size_t at)
    fl_status fl_sampler_next(fl_sampler *s, const int32_t *tokens, size_t n)
    fl_status fl_sampler_decay(fl_sampler *s, const int32_t *tokens, size_t n, size_t start, float factor)
    fl_status fl_sampler_break(fl_sampler *s, const int32_t *tokens, size_t n)
    void fl_sampler_watermark(fl_sampler *s, const fl_watermark *watermark)
    fl_status fl_sampler_copy(const fl_sampler *s, fl_sampler **out)
    fl_status fl_sampler_accept(fl_sampler *s, int32_t token, int generated)

    ctypedef struct fl_draw_scratch:
        pass

    fl_status fl_draw_scratch_new(fl_draw_scratch **out)
    void fl_draw_scratch_free(fl_draw_scratch *scratch)
    fl_status fl_sampler_draw(fl_sampler *s, fl_draw_scratch *scratch, const fl_kernels *k, const float *logits,
                              int32_t *token)

    ctypedef struct fl_draw:
        fl_sampler *sampler
        const float *logits
        bint processed
        const uint32_t *const *masks
        const int32_t *guesses
        size_t n_guesses
        int32_t *tokens
        size_t n_tokens
        fl_status status

    void fl_draw_all(fl_draw_scratch *scratch, const fl_kernels *k, fl_draw *draws, size_t n, size_t threads,
                     fl_pace *pace)
    size_t fl_draw_threads(const fl_draw *draws, size_t n, size_t threads)

    fl_status fl_logprobs(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, size_t vocab, size_t top,
                          int32_t *tokens, double *out)

    # ---- contrasts

    fl_status fl_guide(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, const float *other,
                       size_t vocab, float scale, float *out)
    fl_status fl_dola(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, const float *exits, size_t n,
                      size_t vocab, size_t threads, fl_pace *pace, float *out)
    fl_status fl_likeliest(const fl_sampler *s, fl_draw_scratch *scratch, const fl_kernels *k, const float *logits,
                           bint processed, const uint32_t *mask, size_t most, int32_t *tokens, double *probs,
                           size_t *n)
    void fl_unit_row(float *panels, size_t n, size_t r, const float *x)
    fl_status fl_degeneration(const fl_kernels *k, const fl_matrix *context, size_t count, const float *x, size_t n,
                              size_t threads, float *out)

    # ---- beams

    ctypedef struct fl_follower:
        size_t beam
        int32_t token
        float score

    ctypedef struct fl_beam:
        fl_sampler *sampler
        const float *logits
        float *scores
        float score
        bint processed
        const uint32_t *mask
        fl_follower *best
        size_t n_best
        float *sums
        fl_status status

    ctypedef struct fl_scoring:
        size_t most
        bint samples
        size_t keep
        const int32_t *taken
        size_t n_taken
        float penalty

    void fl_beams_score(fl_draw_scratch *scratch, const fl_kernels *k, fl_beam *beams, size_t n, const fl_scoring *how,
                        size_t threads, fl_pace *pace)
    size_t fl_beams_best(const fl_beam *beams, size_t n, size_t most, fl_follower *out)
    size_t fl_beams_draw(const fl_kernels *k, fl_beam *beams, size_t n, size_t vocab, size_t most, uint64_t *state,
                         fl_follower *out)
    fl_status fl_log_softmax(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, size_t vocab,
                             float *out)

    # ---- the machine

    void *fl_alloc(size_t bytes)
    void fl_free(void *p)

    ctypedef struct fl_mapping:
        pass

    int fl_mapping_new(int fd, fl_mapping **out)
    void fl_mapping_free(fl_mapping *m)
    const void *fl_mapping_data(const fl_mapping *m)
    size_t fl_mapping_bytes(const fl_mapping *m)
    int fl_mapping_fd(const fl_mapping *m)

    ctypedef enum fl_file_state:
        FL_FILE_SAME
        FL_FILE_TRUNCATED
        FL_FILE_CHANGED
        FL_FILE_UNREADABLE

    fl_file_state fl_mapping_state(const fl_mapping *m)
    fl_file_state fl_mapping_glance(fl_mapping *m)
    void fl_mapping_guard()
    uint64_t fl_read(const void *p, size_t bytes, size_t threads)
    uint64_t fl_int8_peak(const fl_kernels *k, size_t rounds, size_t threads)
    int fl_try_threads(size_t threads)
    int fl_has_threads()

cdef extern from "fpenv.h" nogil:
    ctypedef struct fl_fpenv:
        pass

    fl_fpenv fl_fpenv_set()
    void fl_fpenv_restore(fl_fpenv before)
