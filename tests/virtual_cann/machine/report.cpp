// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <cstdio>

#include "order.h"

namespace virtual_cann {

namespace {

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      json += escaped;
    } else {
      json += c;
    }
  }
  return json + '"';
}

std::string number(uint64_t value) { return std::to_string(value); }

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

template <class Item, class Convert>
std::string list(const Item& items, Convert&& convert) {
  std::string json;
  for (const auto& item : items) json += (json.empty() ? "" : ", ") + convert(item);
  return json;
}

template <class Value>
std::string member(const char* name, const Value& value) {
  return quoted(name) + ": " + value;
}

std::string to_json(const Violation& violation) {
  return "{" + member("rule", quoted(rule_name(violation.rule))) + ", " + member("api", quoted(violation.api)) + ", " +
         member("file", quoted(violation.file)) + ", " + member("line", number(uint64_t(violation.line))) + ", " +
         member("core", number(uint64_t{violation.core})) + ", " + member("expected", quoted(violation.expected)) +
         ", " + member("got", quoted(violation.got)) + ", " + member("times", number(violation.times)) + "}";
}

std::string to_json(const Counters& counters) {
  const auto size = [](const auto& entry) { return quoted(number(entry.first)) + ": " + number(entry.second); };
  const BankConflicts& conflicts = counters.bank_conflicts;
  return "{" + member("gm_bytes_read", number(counters.gm_bytes_read)) + ", " +
         member("gm_bytes_written", number(counters.gm_bytes_written)) + ", " +
         member("dma_reads", number(counters.dma_reads)) + ", " + member("dma_writes", number(counters.dma_writes)) +
         ", " + member("dma_sizes", "{" + list(counters.dma_sizes, size) + "}") + ", " +
         member("vector_instructions", number(counters.vector_instructions)) + ", " +
         member("vector_repeats", number(counters.vector_repeats)) + ", " +
         member("bank_conflicts", number(conflicts.cycles)) + ", " +
         member("read_read_conflicts", number(conflicts.read_read)) + ", " +
         member("write_write_conflicts", number(conflicts.write_write)) + ", " +
         member("read_write_conflicts", number(conflicts.read_write)) + ", " +
         member("scalar_ub_accesses", number(counters.scalar_ub_accesses)) + ", " +
         member("scalar_gm_accesses", number(counters.scalar_gm_accesses)) + ", " +
         member("flags", number(counters.flags)) + ", " + member("barriers", number(counters.barriers)) + "}";
}

std::string to_json(const Estimate& estimate) {
  std::string json = member("microseconds", number(estimate.microseconds));
  for (int pipe = 0; pipe < kPipes; ++pipe)
    json += ", " + member(pipe_name(static_cast<Pipe>(pipe)), number(estimate.busy[pipe]));
  return member(estimate.assumption.c_str(), "{" + json + "}");
}

}  // namespace

Counters Report::total() const {
  Counters total;
  for (const Counters& core : cores) {
    total.gm_bytes_read += core.gm_bytes_read;
    total.gm_bytes_written += core.gm_bytes_written;
    total.dma_reads += core.dma_reads;
    total.dma_writes += core.dma_writes;
    for (const auto& [size, times] : core.dma_sizes) total.dma_sizes[size] += times;
    total.vector_instructions += core.vector_instructions;
    total.vector_repeats += core.vector_repeats;
    total.bank_conflicts += core.bank_conflicts;
    total.scalar_ub_accesses += core.scalar_ub_accesses;
    total.scalar_gm_accesses += core.scalar_gm_accesses;
    total.flags += core.flags;
    total.barriers += core.barriers;
  }
  return total;
}

std::string Report::message() const {
  std::string message;
  for (const Violation& violation : violations) {
    message += std::string(rule_name(violation.rule)) + " at " + file_name(violation.file) + ":" +
               std::to_string(violation.line) + " (" + violation.api + ", core " + std::to_string(violation.core) +
               ", " + std::to_string(violation.times) + " times): expected " + violation.expected + ", got " +
               violation.got + "\n";
  }
  if (!exception.empty()) message += "exception " + exception + "\n";
  return message;
}

std::string Report::json() const {
  const auto convert = [](const auto& item) { return to_json(item); };
  return "{" + member("kernel", quoted(kernel)) + ", " + member("blocks", number(uint64_t{blocks})) + ", " +
         member("blocks_run", number(uint64_t{blocks_run})) + ", " +
         member("violations", "[" + list(violations, convert) + "]") + ", " + member("exception", quoted(exception)) +
         ", " + member("total", to_json(total())) + ", " + member("cores", "[" + list(cores, convert) + "]") + ", " +
         member("estimates", "{" + list(estimates, convert) + "}") + "}";
}

}  // namespace virtual_cann
