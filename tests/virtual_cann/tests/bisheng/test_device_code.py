# SPDX-License-Identifier: Apache-2.0
"""Code that a core cannot run, although g++ would compile it, is refused with its file and line."""

from __future__ import annotations

import pytest

BROKEN_RULES = {
    "double": ("__aicore__ void f() { double x = 0; }", "'double' in device code: an AI core has no double"),
    "long double": ("__aicore__ long double f();", "'double' in device code"),
    "double parameter": ("__global__ __aicore__ void k(double x) {}", "'double' in device code"),
    "double literal": ("__aicore__ float f(float x) { return x * 2.5; }", "'2.5' is a double"),
    "double subtracted": ("__aicore__ float f(float x) { return (x) - 2.5; }", "'2.5' is a double"),
    "double exponent": ("__aicore__ float f(float x) { return 1e-5 + x; }", "'1e-5' is a double"),
    "std function": ("__aicore__ float f(float x) { return std::exp(x); }", "'std::exp' in device code"),
    "std container": ("__aicore__ void f() { std::string s; }", "'std::string' in device code"),
    "std in the signature": ("__aicore__ void f(std::string s) {}", "'std::string' in device code"),
    "using std": ("__aicore__ void f() { using namespace std; }", "'std' in device code"),
    "libm": ("__aicore__ float f(float x) { return expf(x); }", "'expf' in device code: the C library is host code"),
    "libm, qualified": ("__aicore__ float f(float x) { return ::logf(x); }", "'logf' in device code"),
    "libm in an expression": ("__aicore__ float f(float x) { return 1.0f / sqrt(x); }", "'sqrt' in device code"),
    "memcpy": ("__aicore__ void f(char* a, char* b) { memcpy(a, b, 4); }", "use AscendC::DataCopy"),
    "malloc": ("__aicore__ void f() { void* p = malloc(4); }", "use TPipe::InitBuffer"),
    "new": ("__aicore__ void f() { int* p = new int; }", "'new' in device code"),
    "delete": ("__aicore__ void f(int* p) { delete p; }", "'delete' in device code"),
    "throw": ("__aicore__ void f() { throw 1; }", "'throw' in device code"),
    "try": ("__aicore__ void f() { try { } catch (...) { } }", "'try' in device code"),
    "dynamic_cast": ("__aicore__ void f(B* b) { dynamic_cast<A*>(b); }", "'dynamic_cast' in device code"),
    "typeid": ("__aicore__ void f(int b) { typeid(b); }", "'typeid' in device code"),
    "virtual device function": ("struct A { __aicore__ virtual void f() {} };", "'virtual' in device code"),
    "virtual in a device class": ("struct A { virtual void g(); __aicore__ void f() {} };", "'virtual' in device code"),
    "virtual base": ("struct B {}; struct A : virtual B { __aicore__ void f() {} };", "'A' has a virtual base"),
    "static variable": ("__aicore__ void f() { static int calls = 0; }", "'static' in device code"),
    "thread_local": ("__aicore__ void f() { thread_local int x; }", "'thread_local' in device code"),
    "recursion": ("__aicore__ int f(int n) { return n ? f(n - 1) : 0; }", "'f' calls itself"),
    "recursion by this": ("struct A { __aicore__ void f() { this->f(); } };", "'f' calls itself"),
    "host function": ("int h(int x) { return x; } __aicore__ int f() { return h(1); }", "'h' is host code"),
    "host function template": ("template <class T> T h() { return T(); } __aicore__ int f() { return h<int>(); }", "'h' is host"),
    "host member": ("struct A { void p() {} __aicore__ void q() { p(); } };", "'p' is host code"),
    "host member of an object": ("struct A { void p() {} }; __aicore__ void f() { A a; a.p(); }", "'p' is host code"),
    "host member of a template": (
        "template <class T> struct A { void Process() {} }; __global__ __aicore__ void k() { A<int> op; op.Process(); }",
        "'Process' is host code",
    ),
    "host member by pointer": ("struct A { void p() {} }; __aicore__ void f(A* a) { a->p(); }", "'p' is host code"),
    "host constructor": ("struct A { A() {} }; __aicore__ void f() { A a; }", "'A::A' is host code"),
    "host static member": ("struct A { static int p() { return 1; } }; __aicore__ int f() { return A::p(); }", "'p' is host"),
    "in a member defined outside": ("struct A { __aicore__ void f(); }; __aicore__ void A::f() { throw 1; }", "'throw' in"),
    "in a constructor's initialisers": ("struct A { float x; __aicore__ A() : x{expf(1.0f)} {} };", "'expf' in device code"),
    "in a lambda": ("__aicore__ void f() { auto g = [&](float x) { return logf(x); }; }", "'logf' in device code"),
    "in a macro": ("#define LOG(x) logf(x)\n__aicore__ float f(float x) { return LOG(x); }", "'logf' in device code"),
    "kernel calls a kernel": ("__global__ __aicore__ void a() {} __global__ __aicore__ void b() { a(); }", "device code cannot"),
    "launch from the device": (
        "__global__ __aicore__ void a() {} __global__ __aicore__ void b() { a<<<1, nullptr, nullptr>>>(); }", "only the host can",
    ),
    "kernel without a core": ("__global__ void k() {}", "'k' is __global__ and not __aicore__"),
    "kernel that returns": ("__global__ __aicore__ int k() { return 1; }", "a kernel returns void"),
    "kernel as a member": ("struct A { __global__ __aicore__ void k(); };", "make it a free function"),
    "kernel with a raw pointer": ("__global__ __aicore__ void k(float* x) {}", "'float* x' has no address space"),
    "kernel with a reference": ("struct P { int a; }; __global__ __aicore__ void k(const P& p) {}", "is a reference to the host"),
    "kernel with an object": ("struct P { P() {} int a; }; __global__ __aicore__ void k(P p) {}", "is no plain struct"),
    "kernel on cube cores": ("__global__ __mix__(1, 2) void k() {}", "vector cores only"),
    "SetGlobalBuffer of a raw pointer": (
        "__aicore__ void f(__gm__ uint8_t* x) { AscendC::GlobalTensor<float> g; g.SetGlobalBuffer((float*)x, 4); }",
        "'float*' given to SetGlobalBuffer has no address space: write '__gm__ float*'",
    ),
    "SetGlobalBuffer of a raw pointer, newer cast": (
        "__aicore__ void f(__gm__ uint8_t* x) { AscendC::GlobalTensor<float> g; g.SetGlobalBuffer(reinterpret_cast<float*>(x)); }",
        "has no address space",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_a_rule_of_device_code_is_enforced(compile_text, name):
    source, message = BROKEN_RULES[name]
    done = compile_text(f"\n{source}\n")
    assert done.returncode == 1
    line = 2 + source.count("\n")
    errors = done.stderr.splitlines()
    assert any(error.startswith(f"k.asc:{line}: error: ") and message in error for error in errors), done.stderr


LEGAL = {
    "numbers": "__aicore__ void f2(float) {} __aicore__ float f(float x) { float y = 1.0, z = -1e-5; f2(2.0); unsigned u = 1u; return x * 2.5f + 0x1F + 1'000 + (y < 2.0f); }",
    "host class with any member": "#include <cmath>\n#include <string>\nstruct H { H() {} std::string s; virtual ~H() {} double d() { return exp(1.0); } };",
    "compile-time std": (
        "#include <limits>\n#include <type_traits>\ntemplate <class T> __aicore__ int f() { if constexpr (std::is_same_v<T, int>) { return std::numeric_limits<T>::max(); }"
        " typename std::conditional<true, int, T>::type x = 0; static_assert(std::is_integral<T>::value, \"\"); return x; }"
    ),
    "names that only look like libm": (
        "struct L { float exp, log; __aicore__ void Log() {} }; __aicore__ void f() { L l; l.exp = l.log; l.Log();"
        " AscendC::Exp(&l.exp, &l.log, 1); AscendC::GlobalTensor<float> floor; float pow(3.0f); }"
    ),
    "own function named like libm's": "namespace own { __aicore__ inline float round(float x, int) { return x; } }"
    " using own::round; __aicore__ float f() { return round(1.0f, 2); }",
    "printf of the API": '__aicore__ void f() { AscendC::printf("%d", 1); }',
    "printf without its namespace": '#include <cstdio>\n__global__ __vector__ void hello() { printf("hello"); }',
    "casts of whole literals": "template <class T> __aicore__ float f() { T x = (T)1.0; return (float)-0.5; }",
    "questions about double": "#include <type_traits>\ntemplate <class T> __aicore__ bool f() { return std::is_same_v<T, double>; }",
    "constexpr functions and tables": (
        "constexpr int h(int x) { return x + 1; } __aicore__ int f() { static constexpr int t[] = {1, 2}; return h(t[0]); }"
    ),
    "overloads call one another": "__aicore__ int f(int a, int b) { return a + b; } __aicore__ int f(int a) { return f(a, 1); }",
    "templates that end": "template <int N> __aicore__ int f() { if constexpr (N > 0) { return f<N - 1>(); } else { return 0; } }",
    "members of other objects": (
        "struct A { __aicore__ void Process() {} }; struct B { A a; __aicore__ void Process() { a.Process(); } };"
        " struct H { void Init() {} }; __aicore__ void f() { AscendC::TPipe pipe; pipe.Init(); pipe.Process(); }"
    ),
    "constructors": (
        "struct A { __aicore__ inline A(int x) : a_(x), b_{x} {} __aicore__ A(const A&) = delete; __aicore__ ~A() {}"
        " int a_, b_; }; struct P { int x = 0; }; __aicore__ void f() { A a(1); P p; P q{1}; }"
    ),
    "lambda": "__aicore__ int f() { auto g = [](int x) { return x; }; return g(1); }",
    "plain structs by value": "struct P { int a[4]; struct { float b; } c; }; __global__ __aicore__ void k(P p, const uint8_t n) {}",
    "pointers": (
        "#define GM_ADDR __gm__ uint8_t*\nextern \"C\" __global__ __aicore__ void k(GM_ADDR x, __gm__ const float* y, __gm__ void* z) {"
        " AscendC::GlobalTensor<float> g; g.SetGlobalBuffer((__gm__ float*)x, 4); g.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(x + 1));"
        " __gm__ float* p = (__gm__ float*)z; g.SetGlobalBuffer(p + 4); g.SetGlobalBuffer((p)); float* local = (float*)&g; }"
    ),
    "vector keyword instead of aicore": "__global__ __vector__ void k(__gm__ float* x) {} __vector__ __global__ __aicore__ void l() {}",
    "batch mode": "__schedmode__(1) __global__ __mix__(0, 1) void k() {}",
    "static function": "static __aicore__ inline int f() { return 1; } __aicore__ int g() { return f(); }",
    "out-of-class template member": (
        "template <class T> class A { public: __aicore__ inline void Init(int n = 3); private: T x; };"
        " template <class T> __aicore__ inline void A<T>::Init(int n) { x = n; }"
    ),
    "a device function that the host declares": "__aicore__ int f(); __aicore__ int f() { return 1; }",
    "loops and goto": "__aicore__ int f(int n) { int s = 0; for (int i = 0; i < n; ++i) { s += i; } return n > 3 ? s : -s; }",
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL)
def test_what_only_resembles_a_fault_compiles(compile_text, name):
    done = compile_text(f'#include "api.h"\n{LEGAL[name]}\n')
    assert done.returncode == 0, done.stderr


def test_every_fault_of_a_source_is_told_at_once(compile_text):
    done = compile_text("__aicore__ void f() {\n  double x = 0;\n  x = sqrt(x);\n}\n__global__ void k(int* p) {}\n")
    lines = [line.split(": error: ")[0] for line in done.stderr.splitlines()]
    assert lines == ["k.asc:2", "k.asc:3", "k.asc:5", "k.asc:5"]


def test_headers_of_the_user_are_judged_too(compile_text, tmp_path):
    (tmp_path / "own.h").write_text("\n__aicore__ inline float f(float x) { return expf(x); }\n")
    done = compile_text('#include "own.h"\n')
    assert done.returncode == 1
    assert "own.h:2: error: 'expf'" in done.stderr
