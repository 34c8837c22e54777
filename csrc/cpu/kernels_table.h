// The table of the instruction set that this file is compiled for; included by the kernels_*.cpp files.
#pragma once

#include "attention.h"
#include "elementwise.h"
#include "kernels.h"
#include "store_token.h"

EXL2_ISA_BEGIN

static constexpr Kernels kTable = {
    rms_norm, rope, silu_mul, scale, add_rows, to_float, exp_row, to_half, sum_row, block_max, store_token, attention,
};

EXL2_ISA_END
