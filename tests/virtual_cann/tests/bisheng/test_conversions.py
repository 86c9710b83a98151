# SPDX-License-Identifier: Apache-2.0
"""Device code converts between unsigned integers and floats in no way that bisheng accepts."""

from __future__ import annotations

import pytest

HEAD = """#include <cstdint>
struct P { uint32_t u; int32_t i; float f; uint8_t b; uint64_t l; bool t; };
constexpr uint32_t kU = 8;
enum E : uint32_t { kE = 3 };
__aicore__ inline float take(float x) { return x; }
__aicore__ inline uint32_t take_u(uint32_t x) { return x; }
"""
F = "__aicore__ inline float f(const P& p) {{ {} }}"
USE = "__global__ __aicore__ void k(uint32_t n) {{ {} }}"
LAUNCH = '#include "machine/launch.h"\n'
U = "__aicore__ inline uint32_t f(const P& p) {{ {} }}"

# Ways to ask for a conversion: the source, and the types that the message names.
REFUSED = {
    "static_cast": (F.format("return static_cast<float>(p.u);"), "'uint32_t' to 'float'"),
    "cast of C": (F.format("return (float)p.u;"), "'uint32_t' to 'float'"),
    "functional cast": (F.format("return float(p.u);"), "'uint32_t' to 'float'"),
    "braces": (F.format("return float{kU};"), "to 'float'"),
    "initialisation": (F.format("float x = p.u; return x;"), "'uint32_t' to 'float'"),
    "direct initialisation": (F.format("float x(p.u); return x;"), "'uint32_t' to 'float'"),
    "initialisation of a member": ("struct A { float x; __aicore__ A(uint32_t u) : x(u) {} };", "'uint32_t' to 'float'"),
    "default of a member": (
        "struct A { uint32_t u = 1; float x = u; }; __aicore__ float f() { A a; return a.x; }", "'uint32_t' to 'float'",
    ),
    "initialisation of an aggregate": (F.format("float x[2] = {1.0f, kU}; return x[1];"), "to 'float'"),
    "assignment": (F.format("float x; x = p.u; return x;"), "'uint32_t' to 'float'"),
    "compound assignment": (F.format("float x = 1.0f; x /= p.u; return x;"), "'uint32_t' to 'float'"),
    "arithmetic": (F.format("return p.f / p.u;"), "'uint32_t' to 'float'"),
    "arithmetic, the other way round": (F.format("return p.u * p.f;"), "'uint32_t' to 'float'"),
    "comparison": ("__aicore__ inline bool f(const P& p) { return p.f < p.u; }", "'uint32_t' to 'float'"),
    "the conditional operator": (F.format("return p.i > 0 ? p.f : p.u;"), "'uint32_t' to 'float'"),
    "argument": (F.format("return take(p.u);"), "'uint32_t' to 'float'"),
    "return value": (F.format("return p.u;"), "'uint32_t' to 'float'"),
    "initialisation of members": (
        "__aicore__ inline P f() { P p = {1, 1, kU}; return p; }", "'const uint32_t' to 'float'",
    ),
    "8 bits": (F.format("return p.b;"), "'uint8_t' to 'float'"),
    "64 bits": (F.format("return static_cast<float>(p.l);"), "'uint64_t' to 'float'"),
    "bool": (F.format("return p.t;"), "'bool' to 'float'"),
    "the result of a comparison": (F.format("float x = p.f > 1.0f; return x;"), "'bool' to 'float'"),
    "unsigned enumeration": (F.format("return kE;"), "'E' to 'float'"),
    "size_t": (F.format("return static_cast<float>(sizeof(P));"), "'unsigned long' to 'float'"),
    "a constant": (F.format("return kU;"), "to 'float'"),
    "a constant in arithmetic": (F.format("return p.f / kU;"), "to 'float'"),
    "a literal": (F.format("return p.f * 8u;"), "'unsigned int' to 'float'"),
    "a constant that is a float": (F.format("constexpr float x = kU; return x;"), "to 'const float'"),
    "half": (
        '#include "ascendc/half.h"\n__aicore__ inline half f(const P& p) { return static_cast<half>(p.u); }', "to 'half'",
    ),
    "float to unsigned": (U.format("return static_cast<uint32_t>(p.f);"), "'float' to 'uint32_t'"),
    "float to unsigned, cast of C": (U.format("return (uint32_t)p.f;"), "'float' to 'uint32_t'"),
    "float to unsigned, return value": (U.format("return p.f;"), "'float' to 'uint32_t'"),
    "float to unsigned, initialisation": (U.format("uint32_t x = p.f; return x;"), "'float' to 'uint32_t'"),
    "float to unsigned, assignment": (U.format("uint32_t x; x = p.f; return x;"), "'float' to 'uint32_t'"),
    "float to unsigned, compound assignment": (U.format("uint32_t x = p.u; x += p.f; return x;"), "'float' to 'uint32_t'"),
    "float to unsigned, argument": (U.format("return take_u(p.f);"), "'float' to 'uint32_t'"),
    "float to unsigned, 8 bits": (U.format("uint8_t x = p.f; return x;"), "'float' to 'uint8_t'"),
    "float to unsigned, a constant": (U.format("return static_cast<uint32_t>(2.0f);"), "'float' to 'uint32_t'"),
    "in a kernel": (
        "__global__ __aicore__ void k(__gm__ float* x, uint32_t n) { x[0] = n; }", "'uint32_t' to 'float'",
    ),
    "in a kernel of vector cores": ("__global__ __vector__ void k(__gm__ float* x, uint32_t n) { x[0] = n; }", "to 'float'"),
    "in a template, as it is instantiated": (
        "template <class T> __aicore__ inline float to_float(T x) { return x; } " + F.format("return to_float(p.u);"),
        "to 'float'",
    ),
    "in a template's parameter": (
        "template <uint32_t N> __aicore__ inline float n() { return N; } __aicore__ inline float f() { return n<7>(); }",
        "to 'float'",
    ),
    "in a member of a class template": (
        "template <class T> struct A { T n; __aicore__ float get() { return n; } }; " + USE.format("A<uint32_t> a{n}; a.get();"),
        "to 'float'",
    ),
    "in a constructor of a class template": (
        "template <class T> struct A { float x; __aicore__ A(T n) { x = n; } }; " + USE.format("A<uint32_t> a(n);"),
        "to 'float'",
    ),
    "in a kernel that is a template": (
        LAUNCH + "template <class T> __global__ __aicore__ void k(T n) { float x = n; } "
        "void launch(void* s) { k<uint32_t><<<1, nullptr, s>>>(1); }",
        "to 'float'",
    ),
    "in a lambda": (F.format("auto g = [](uint32_t u) { return 2.0f * u; }; return g(p.u);"), "'uint32_t' to 'float'"),
    "in a macro": ("#define TO_FLOAT(x) (0.5f * (x))\n" + F.format("return TO_FLOAT(p.u);"), "'uint32_t' to 'float'"),
    "in a constexpr function that a core runs": (
        "constexpr float host(uint32_t u) { return u; } " + F.format("return host(p.u);"), "'uint32_t' to 'float'",
    ),
    "in a destructor": ("struct A { float x; uint32_t u; __aicore__ ~A() { x = u; } };", "'uint32_t' to 'float'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_conversion_is_refused(compile_text, name):
    source, types = REFUSED[name]
    done = compile_text(f"{HEAD}{source}\n")
    assert done.returncode == 1, "compiled"
    (error,) = done.stderr.splitlines()
    line = HEAD.count("\n") + 1 + source.count("\n")
    assert error.startswith(
        f"k.asc:{line}: error: cast between floating and unsigned integer variable is not allowed in aicore function: "
    )
    assert types in error


ALLOWED = {
    "through a signed integer": F.format("return static_cast<float>(static_cast<int32_t>(p.u));"),
    "to unsigned through a signed integer": U.format("return static_cast<uint32_t>(static_cast<int32_t>(p.f));"),
    "a signed integer": F.format("float x = p.i; return x / p.i + 8 + 'a';"),
    "between integers": U.format("return p.i + p.b + p.t;"),
    "between floats": '#include "ascendc/half.h"\n' + F.format("half h = static_cast<half>(p.f); return h;"),
    "8 and 16 bits in arithmetic, which are an int there": F.format("return p.f * p.b + p.f * p.t + (p.f > 1.0f);"),
    "lists": F.format("P a = {1, 2, 3.0f, 4, 5, true}; float x[2][1] = {{p.f}, {1}}; return a.f + x[1][0];"),
    "bits": "__aicore__ inline uint32_t f(float x) { return reinterpret_cast<uint32_t&>(x); }",
    "a float as a condition": "__aicore__ inline bool f(const P& p) { return p.f && !p.f; }",
    "a bool that chooses": F.format("return p.t ? 1.0f : p.f;"),
    "an index": F.format("float x[4] = {}; return x[p.u];"),
    "a template that nobody uses so": (
        "template <class T> __aicore__ inline float to_float(T x) { return x; } " + F.format("return to_float(p.i);")
    ),
    "the branch of if constexpr that is not taken": (
        "#include <type_traits>\ntemplate <class T> __aicore__ inline float to_float(T x) { if constexpr "
        "(std::is_unsigned_v<T>) { return static_cast<int32_t>(x); } else { return x; } } "
        + F.format("return to_float(p.u);")
    ),
    "on the host": (
        LAUNCH + "__global__ __aicore__ void k(float x) {}\n"
        "int variadic(const char*, ...); void launch(uint32_t n, void* s) { uint32_t back = 2.5f; k<<<back, nullptr, s>>>(1.0f / n); }"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_what_only_resembles_one_compiles(compile_text, name):
    done = compile_text(f"{HEAD}{ALLOWED[name]}\n")
    assert done.returncode == 0, done.stderr


def test_all_conversions_are_told_once_each_wherever_they_stand(compile_text, tmp_path):
    (tmp_path / "own.h").write_text(
        "#pragma once\ntemplate <class T>\n__aicore__ inline float half_of(T x) {\n  return 0.5f * x;\n}\n"
    )
    done = compile_text(
        '#include <cstdint>\n#include "own.h"\n__global__ __aicore__ void k(__gm__ float* x, uint32_t n) {\n'
        "  x[0] = half_of(n) + half_of(n);\n  x[1] = n;\n}\n"
    )
    assert done.returncode == 1
    assert [error.split(": error")[0] for error in done.stderr.splitlines()] == ["k.asc:5", "own.h:4"]


def test_what_clang_itself_refuses_in_the_users_files_is_told(compile_text):
    """The real compiler is a clang; g++ accepts this silently."""
    done = compile_text("__aicore__ inline int f(int n) { int x[2] = {[1] = 2}; int y[n]; return x[1] + sizeof(y); }\n"
                        "__aicore__ inline int g() { return __builtin_has_attribute(f, cold); }\n")  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("k.asc:2:")
