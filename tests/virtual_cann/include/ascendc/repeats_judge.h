// SPDX-License-Identifier: Apache-2.0
// The judgements of VectorCall. Their rules are in the pages 高维切分 (repeats and strides), 掩码 (masks) and
// 通用说明和约束 (alignment and overlap); CANN 8 adds that a mask is not empty.
#pragma once

#include <bitset>

namespace virtual_cann::api {

VIRTUAL_CANN_ONCE void VectorCall::require_range(Rule rule, const char* what, int64_t meant, int64_t limit) {
  if (meant < 0 || meant > limit) core.violate(rule, std::string(what) + " of 0 to " + text(limit), text(meant));
}

VIRTUAL_CANN_ONCE void VectorCall::misaligned(uint32_t address, uint32_t alignment) {
  core.violate(Rule::ub_alignment, "an address that is a multiple of " + text(alignment) + " bytes",
               text(address) + ", which is " + text(address % alignment) + " more");
}

VIRTUAL_CANN_ONCE void VectorCall::too_long(uint32_t bytes, uint64_t wanted) {
  core.stop(Rule::ub_bounds, "at most the " + text(bytes) + " bytes of the tensor", text(wanted));
}

VIRTUAL_CANN_ONCE Extent VectorCall::unmasked(uint32_t lanes, int64_t meant) {
  if (core.mask.counter)
    core.violate(Rule::mask_limit, "SetMaskNorm before it: no page says what it does in counter mode", "counter mode");
  require_range(Rule::repeat_limit, "a repeat count", meant, kMaxRepeats);
  return {lanes, kFullMask, static_cast<uint32_t>(std::max<int64_t>(meant, 0))};
}

VIRTUAL_CANN_ONCE Extent VectorCall::repeats(uint32_t lanes, int64_t meant) {
  Extent extent{lanes, core.mask, 0};
  if (core.mask.counter) {
    extent.repeats = static_cast<uint32_t>((core.mask.low + lanes - 1) / lanes);
    return extent;
  }
  extent.repeats = unmasked(lanes, meant).repeats;
  if (!(lanes <= 64 ? core.mask.low << (64 - lanes) : core.mask.low | core.mask.high << (128 - lanes)))
    core.violate(Rule::mask_limit, "a mask with a lane of this type", "none");
  return extent;
}

constexpr uint64_t low_bits(uint64_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

VIRTUAL_CANN_ONCE void set_lanes(Core& core, uint32_t lanes, uint64_t count) {
  if (count > lanes) core.violate(Rule::mask_limit, "a mask of at most " + text(lanes) + " lanes", text(count));
  core.mask = {low_bits(count), count > 64 ? low_bits(count - 64) : 0, false};
}

VIRTUAL_CANN_ONCE Extent VectorCall::masked(uint32_t lanes, MaskArgument mask, int64_t meant) {
  if (core.mask.counter) {
    // The headers turn a number of lanes into bits, which counter mode takes as a number of elements.
    if (!mask.bits)
      core.violate(Rule::mask_limit, "a mask of two words in counter mode", "a number of lanes: " + text(mask.count));
    core.mask = {mask.bits ? mask.bits[0] : mask.count, 0, true};
  } else if (mask.bits) {
    core.mask = {mask.bits[0], mask.bits[1], false};
    if (lanes <= 64 && (mask.bits[1] || mask.bits[0] & ~low_bits(lanes)))
      core.violate(Rule::mask_limit, "bits for the " + text(lanes) + " lanes of the type alone", "bits beyond");
  } else {
    set_lanes(core, lanes, mask.count);
  }
  return repeats(lanes, meant);
}

VIRTUAL_CANN_ONCE Extent VectorCall::counted(uint32_t lanes, int64_t count) {
  core.mask = kFullMask;
  const uint64_t elements = static_cast<uint32_t>(count);
  return {lanes, {elements, 0, true}, static_cast<uint32_t>((elements + lanes - 1) / lanes)};
}

// The bytes from the operand's address to the end of the last active lane.
VIRTUAL_CANN_ONCE uint64_t used_bytes(const Operand& operand, const Extent& extent) {
  uint64_t end = 0;
  // The last repeat ends last, unless counter mode cuts it short: then the one before may.
  for (uint32_t repeat = extent.repeats; repeat-- > 0 && extent.repeats - repeat <= 2;) {
    if (const uint32_t lanes = extent.end_of(repeat))
      end = std::max(end, operand.offset(repeat, lanes - 1) + operand.size);
  }
  return end;
}

VIRTUAL_CANN_ONCE void VectorCall::require_length(const Operand& operand, const Extent& extent) {
  require_length(operand, used_bytes(operand, extent));
}

VIRTUAL_CANN_ONCE void VectorCall::require_apart(const Operand& dst, const Operand& src, const Extent& extent,
                                                 bool second) {
  if (!extent.repeats) return;
  const auto end = [&](const Operand& operand) {
    return operand.address + operand.offset(extent.repeats - 1, extent.lanes - 1) + operand.size;
  };
  if (end(dst) <= src.address || end(src) <= dst.address) return;
  const auto overlapping = [&](const char* what) { core.violate(Rule::overlap, what, "partly the same blocks"); };
  if (dst.contiguous(extent.lanes) && src.contiguous(extent.lanes)) {
    if (dst.address == src.address && dst.size == src.size) return;
    const auto bytes = [&](const Operand& operand) { return extent.full() ? extent.elements() * operand.size : ~0u; };
    if (dst.address + bytes(dst) <= src.address || src.address + bytes(src) <= dst.address) return;
  }

  std::bitset<kUbBytes / kBlockBytes> written;
  const uint32_t step = std::min(dst.per_block(), src.per_block());
  const bool stands_still = accumulates && second && (dst.repeat_stride == 0 || src.repeat_stride == 0);
  for (uint32_t repeat = 0; repeat < extent.repeats; ++repeat) {
    const auto in_use = [&](uint32_t chunk) {
      for (uint32_t lane = chunk; lane < chunk + step; ++lane)
        if (extent.active(repeat, lane)) return true;
      return false;
    };
    for (uint32_t i = 0; i < extent.lanes; i += step) {
      if (!in_use(i)) continue;
      const uint32_t source = src.at(repeat, i) / kBlockBytes;
      if (source < written.size() && written[source] && !stands_still)
        return overlapping("no source block that an earlier repeat wrote");
      for (uint32_t j = 0; j < extent.lanes; j += step)
        if (in_use(j) && dst.at(repeat, j) / kBlockBytes == source && (i != j || dst.size != src.size))
          return overlapping("operands that coincide or lie apart");
    }
    for (uint32_t i = 0; i < extent.lanes; i += step)
      if (const uint32_t block = dst.at(repeat, i) / kBlockBytes; in_use(i) && block < written.size())
        written[block] = true;
  }
}

VIRTUAL_CANN_ONCE void VectorCall::require_disjoint(Rule rule, const Operand& dst, const Extent& extent,
                                                    uint32_t address, uint64_t bytes) {
  if (!extent.repeats || !bytes) return;
  const uint64_t end = dst.address + used_bytes(dst, extent);
  if (dst.address < address + bytes && address < end) core.violate(rule, "a dst apart from src", "the same memory");
}

}  // namespace virtual_cann::api
