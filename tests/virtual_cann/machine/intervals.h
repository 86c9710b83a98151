// SPDX-License-Identifier: Apache-2.0
// Maps address ranges to values. Neighbouring ranges of equal value are merged, so that many small accesses stay cheap.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

namespace virtual_cann {

template <class Value>
class Intervals {
 public:
  // Calls visit(value, address) for every piece of [begin, end). visit may change the value, which starts as Value{}.
  template <class Visit>
  void update(uintptr_t begin, uintptr_t end, Visit&& visit) {
    cut(end);
    const auto first = cut(begin);
    auto piece = first;
    for (uintptr_t at = begin; at < end; ++piece) {
      if (piece == pieces_.end() || piece->first > at) {
        const uintptr_t stop = piece == pieces_.end() ? end : std::min(end, piece->first);
        piece = pieces_.emplace_hint(piece, at, Piece{stop, Value{}});
      }
      visit(piece->second.value, at);
      at = piece->second.end;
    }
    merge(begin, piece);
  }

  void clear() { pieces_.clear(); }

 private:
  struct Piece {
    uintptr_t end;
    Value value;
  };
  using Map = std::map<uintptr_t, Piece>;

  // Splits the piece that spans the address, if there is one; returns the first piece from the address on.
  typename Map::iterator cut(uintptr_t address) {
    auto next = pieces_.lower_bound(address);
    if (next == pieces_.begin()) return next;
    Piece& before = std::prev(next)->second;
    if (before.end <= address) return next;
    next = pieces_.emplace_hint(next, address, before);
    before.end = address;
    return next;
  }

  // Merges equal neighbours, from the piece before `begin` up to and including `last`.
  void merge(uintptr_t begin, typename Map::iterator last) {
    auto piece = pieces_.lower_bound(begin);
    if (piece != pieces_.begin()) --piece;
    while (piece != last) {
      const auto next = std::next(piece);
      if (next == pieces_.end()) return;
      if (piece->second.end == next->first && piece->second.value == next->second.value) {
        piece->second.end = next->second.end;
        if (next == last) last = std::next(next);
        pieces_.erase(next);
      } else {
        piece = next;
      }
    }
  }

  Map pieces_;
};

}  // namespace virtual_cann
