// The table of kernels of one instruction set. The build compiles this file once for each, with FL_LANES_H as one of
// lanes_*.h; every kernel is written once, over 16 lanes. All sets give the same bits, because each sum has one order,
// whatever the width of a register: in a matrix product a lane is an output row and adds up k ascending, by fused
// multiply-adds; a sum over a vector adds element i to lane i mod 16, ascending, and then the lanes by one fixed tree.
#include "kernels.h"

#include "act.h"
#include "attend.h"
#include "logits.h"
#include "matmul.h"
#include "norm.h"
#include "peak.h"
#include "quantize.h"
#include "round.h"
#include "turn.h"

#define NAME2(isa) fl_kernels_##isa
#define NAME(isa) NAME2(isa)
#define TEXT2(isa) #isa
#define TEXT(isa) TEXT2(isa)

extern const fl_kernels NAME(FL_ISA);
const fl_kernels NAME(FL_ISA) = {
    .name = TEXT(FL_ISA),
    .matmul = {[FL_F32] = matmul_f32, [FL_F16] = matmul_f16, [FL_BF16] = matmul_bf16, [FL_Q8] = matmul_q8,
               [FL_Q4] = matmul_q4, [FL_Q4_MIN] = matmul_q4_min},
    .quantize = quantize,
    .norm = {[FL_RMS_NORM] = rms_norm, [FL_LAYER_NORM] = layer_norm},
    .act = {[FL_SILU] = act_silu, [FL_GELU_TANH] = act_gelu_tanh, [FL_GELU_ERF] = act_gelu_erf,
            [FL_QUICK_GELU] = act_quick_gelu, [FL_RELU] = act_relu},
    .softcap = softcap,
    .attend = {[FL_F32] = attend_f32, [FL_F16] = attend_f16, [FL_Q8] = attend_q8, [FL_Q4] = attend_q4},
    .merge = merge,
    .probabilities = {[FL_F32] = probabilities_f32, [FL_F16] = probabilities_f16, [FL_Q8] = probabilities_q8,
                      [FL_Q4] = probabilities_q4},
    .q8_search = q8_search,
    .q4_search = q4_search,
    .q4_round = q4_round,
    .q4_descend = q4_descend,
    .to_f16 = to_f16,
    .turn = turn,
    .to_int8 = to_int8,
    .to_codes = to_codes,
    .max = max_index,
    .softmax = softmax,
    .above = above,
    .log = logarithm,
    .peak = peak,
};
