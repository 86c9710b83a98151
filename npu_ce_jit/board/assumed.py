# SPDX-License-Identifier: Apache-2.0
"""The answers that the virtual NPU (tests/virtual_cann) assumes, where the manual is silent or may have been misread.
The kernels are tested under these assumptions and no others.
"""

from __future__ import annotations

from typing import Any

# By question: what is computed, in the syntax of `expressions`, and the result.
COMPUTED: dict[str, dict[str, str]] = {
    "exp_of_minus_inf": {"Exp(-inf)": "0", "Exp(-1000)": "0", "Exp(-104)": "0"},
    "exp_of_inf_and_nan": {"Exp(inf)": "inf", "Exp(89)": "inf", "Exp(nan)": "nan"},
    "ln_of_zero_inf_nan": {"Ln(0)": "-inf", "Ln(inf)": "inf", "Ln(nan)": "nan", "Ln(-1)": "nan", "Ln(1)": "0"},
    "div_by_zero_inf_nan": {
        "Div(1, 0)": "inf", "Div(-1, 0)": "-inf", "Div(0, 0)": "nan", "Div(1, inf)": "0", "Div(inf, inf)": "nan",
        "Div(nan, 1)": "nan",
    },
    "add_and_mul_of_inf_and_nan": {
        "Add(inf, -inf)": "nan", "Add(nan, 1)": "nan", "Mul(0, inf)": "nan", "Mul(nan, 0)": "nan",
        "Add(-0, 0)": "0", "AddZero(-0)": "0", "AddZero(-inf)": "-inf", "AddZero(nan)": "nan",
    },
    "max_with_nan": {"Max(nan, 1)": "1", "Max(1, nan)": "1", "Max(nan, nan)": "nan", "Max(nan, -inf)": "-inf"},
    "min_with_nan": {"Min(nan, 1)": "1", "Min(1, nan)": "1", "Min(nan, nan)": "nan", "Min(nan, inf)": "inf"},
    "maxs_mins_with_nan": {
        "MaxOfOne(nan)": "1", "MinOfOne(nan)": "1", "MaxOfOne(inf)": "inf", "MinOfOne(-inf)": "-inf",
    },
    "whole_reduce_max_with_nan": {
        "WholeReduceMax(nan, 1, 2)": "2", "WholeReduceMax(2, nan, 1)": "2", "WholeReduceMax(1 x63, nan)": "1",
        "WholeReduceMax(nan)": "nan", "WholeReduceMax(-inf)": "-inf",
    },
    "whole_reduce_min_with_nan": {"WholeReduceMin(nan, 2, 1)": "1", "WholeReduceMin(1, nan, 2)": "1"},
    "block_reduce_max_with_nan": {"BlockReduceMax(nan, 1, 2)": "2", "BlockReduceMax(2, nan, 1)": "2"},
    "compare_with_nan": {
        "Equal(nan, nan)": "0", "NotEqual(nan, nan)": "1", "NotEqual(1, 1)": "0", "Greater(nan, 1)": "0",
        "Greater(1, nan)": "0", "BelowOne(nan)": "0", "NotZero(nan)": "1", "Equal(-0, 0)": "1", "NotZero(-0)": "0",
        "Equal(inf, inf)": "1", "Equal(-inf, -inf)": "1",
    },
    "subnormal_exp": {"Exp(-88)": "0x1.07b71p-127", "Exp(-103)": "0x1p-149"},
    "subnormal_ln": {"Ln(0x1p-130)": "-90.1091309", "Ln(0x1p-149)": "-103.278931"},
    "subnormal_add": {
        "Add(0x1p-130, 0x1p-130)": "0x1p-129", "Add(0x1p-126, -0x1.8p-127)": "0x1p-128",
        "AddZero(0x1p-149)": "0x1p-149",
    },
    "subnormal_mul": {"Mul(0x1p-70, 0x1p-70)": "0x1p-140", "Mul(0x1p-140, 1024)": "0x1p-130"},
    "subnormal_div": {"Div(0x1p-100, 0x1p40)": "0x1p-140", "Div(0x1p-140, 0x1p-140)": "1"},
    "subnormal_max_and_compare": {
        "Max(0x1p-140, 0)": "0x1p-140", "Equal(0x1p-140, 0)": "0", "NotZero(0x1p-140)": "1",
        "Greater(0x1p-140, 0)": "1",
    },
    "subnormal_cast_float_to_half": {
        "FloatToHalf(0x1p-20)": "9.53674316e-07", "FloatToHalf(0x1p-24)": "5.96046448e-08",
    },
    "subnormal_cast_half_to_float": {
        "HalfToFloat(0x1p-20)": "9.53674316e-07", "HalfToFloat(0x1p-24)": "5.96046448e-08",
    },
    "subnormal_cast_float_to_bfloat16": {
        "FloatToBfloat16(0x1p-130)": "0x1p-130", "FloatToBfloat16(0x1p-133)": "0x1p-133",
    },
    "subnormal_cast_bfloat16_to_float": {
        "Bfloat16ToFloat(0x1p-130)": "0x1p-130", "Bfloat16ToFloat(0x1p-133)": "0x1p-133",
    },
    "cast_saturation_float_to_half": {
        "FloatToHalf(65519)": "65504", "FloatToHalf(65520)": "inf", "FloatToHalf(-1e10)": "-inf",
        "FloatToHalf(inf)": "inf", "FloatToHalf(nan)": "nan",
    },
    "cast_saturation_float_to_bfloat16": {
        "FloatToBfloat16(0x1.ffp127)": "inf", "FloatToBfloat16(-0x1.ffp127)": "-inf", "FloatToBfloat16(inf)": "inf",
        "FloatToBfloat16(nan)": "nan",
    },
    "cast_saturation_float_to_int32": {
        "FloatToInt32(1e10)": "2147483647", "FloatToInt32(-1e10)": "-2147483648", "FloatToInt32(inf)": "2147483647",
        "FloatToInt32(-inf)": "-2147483648", "FloatToInt32(nan)": "0",
    },
    "cast_saturation_float_to_int64": {
        "FloatToInt64(1e20)": "9223372036854775807", "FloatToInt64(-1e20)": "-9223372036854775808",
        "FloatToInt64(nan)": "0", "FloatToInt64(16777216)": "16777216",
    },
    "cast_ties_float_to_half": {
        "FloatToHalf(2049)": "2048", "FloatToHalf(2051)": "2052", "FloatToHalf(-2049)": "-2048",
        "FloatToHalf(-0)": "-0",
    },
    "cast_ties_float_to_bfloat16": {
        "FloatToBfloat16(257)": "256", "FloatToBfloat16(259)": "260", "FloatToBfloat16(-257)": "-256",
    },
    "cast_ties_to_int": {
        "FloatToInt32(0.5)": "0", "FloatToInt32(1.5)": "2", "FloatToInt32(-2.5)": "-2", "FloatToInt64(2.5)": "2",
        "Int32ToFloat(16777217)": "16777216",
    },
    # In float32, 2^24 + 1 = 2^24: a 1 added to 2^24 is lost, so the sum shows how early -2^24 cancels it.
    "whole_reduce_sum_order": {
        "WholeReduceSum(16777216, -16777216, 1)": "62", "WholeReduceSum(16777216, 1 x31, -16777216, 1)": "61",
        "WholeReduceSum(16777216, 1 x62, -16777216)": "61",
    },
    "block_reduce_sum_order": {
        "BlockReduceSum(16777216, -16777216, 1)": "6", "BlockReduceSum(16777216, 1 x3, -16777216, 1)": "5",
    },
    "reduce_sum_order": {
        "ReduceSum(16777216, -16777216, 1)": "254", "ReduceSum(16777216, 1 x63, -16777216, 1)": "253",
    },
    "whole_reduce_sum_other_lanes": {
        "WholeReduceSum(1)": "64", "WholeReduceSum(1)[3]": "64", "WholeReduceSum(1)[4]": "left alone",
    },
    "reduce_sum_other_lanes": {
        "ReduceSum(1)": "256", "ReduceSum(1)[1]": "left alone", "ReduceSum(1)[7]": "left alone",
    },
    "gather_mask_count": {
        "GatherMaskCount(1)": "128", "GatherMask(1)[127]": "1", "GatherMask(1)[128]": "left alone",
    },
    "create_vec_index": {"CreateVecIndex(0)": "0", "CreateVecIndex(0)[8]": "8", "CreateVecIndex(0)[255]": "255"},
}  # fmt: skip

# What DataCopyPad puts left and right of an unaligned block, for elements of 4 and of 2 bytes.
PADDED: dict[str, Any] = {
    "pad_filler_left0_right0": {"right": "the first element"},
    "pad_filler_right": {"right": "the padding value"},
    "pad_filler_right_short": {"right": "the padding value"},
    "pad_filler_left": {"left": "the padding value", "right": "the padding value"},
    "pad_filler_unpadded_left0_right0": {"right": "the first element"},
}

# The manual promises an error of one ulp for Exp and Ln; for Div it says nothing.
LAST_BITS: dict[str, Any] = {
    "exp_last_bits": {"ulp at most": 1},
    "ln_last_bits": {"ulp at most": 1},
    "div_last_bits": {"ulp at most": 0},
}

# Rates of the virtual NPU's timeline, by name and unit: the fast and the slow end of each range.
_OF_COPIES = {"dma, bytes/cycle": [32, 32], "dma_of_l2, bytes/cycle": [64, 32], "short_copy, bytes": [0, 3072]}
_OF_MEMORY = {"hbm, bytes/s": [1.6e12, 0.98e12], "l2, bytes/s": [2.0e12, 1.6e12]}
COSTS: dict[str, Any] = {
    "launch_cost": {"launch, us": [1.7, 2.8], "launch_on_cores, us on all": [0, 12.9]},
    "copy_bandwidth_by_size": _OF_COPIES,
    "copy_bandwidth_by_working_set": {**_OF_MEMORY, "read_and_write, bytes/s": [2.3456e12, 2.3456e12]},
    "read_bandwidth_by_size": _OF_COPIES,
    "read_bandwidth_by_working_set": _OF_MEMORY,
    "vector_times": {
        "vector_start, cycles": [22, 22],
        "simple, cycles/repeat": [1, 1],
        "cast, cycles/repeat": [0.5, 2],
        "exp, cycles/repeat": [2, 8],
        "ln, cycles/repeat": [2, 8],
        "divide, cycles/repeat": [2, 8],
        "reduce, cycles/repeat": [1, 4],
        "compare, cycles/repeat": [0.5, 2],
        "select, cycles/repeat": [0.5, 2],
        "gather, cycles/repeat": [8, 32],
    },
}
