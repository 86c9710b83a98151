# SPDX-License-Identifier: Apache-2.0
"""bisheng: each source preprocessed, checked, its launches rewritten, and compiled for the host; then one link."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from virtual_cann.cache import build_once
from virtual_cann.compiler import device_code, launches
from virtual_cann.compiler.declarations import find_declarations
from virtual_cann.compiler.options import Options, Source, UsageError, parse
from virtual_cann.compiler.tokens import tokenize, without_marks
from virtual_cann.compiler.tree import Tree, find_tree

VIRTUAL_CANN = Path(__file__).resolve().parents[1]
BUILTINS = VIRTUAL_CANN / "include" / "bisheng_builtins.h"
_HEADERS = (VIRTUAL_CANN / "include", VIRTUAL_CANN / "machine")  # not the user's, so not judged

# A device object can only be linked by bisheng, which adds what registers the image. Here that is one symbol, with a
# name that helps whoever meets it in another linker's message.
_LINK_SYMBOL = "virtual_cann_link_with_bisheng"
_REQUIRE_LINK = (
    f'\nextern "C" __attribute__((visibility("hidden"))) char {_LINK_SYMBOL};'
    f"\n[[gnu::used]] static const char* const virtual_cann_linked = &{_LINK_SYMBOL};\n"
)
_PROVIDE_LINK = f'extern "C" {{ __attribute__((visibility("hidden"))) char {_LINK_SYMBOL} = 0; }}\n'
# What is kept of a compilation.
_OBJECT, _SAID = "object.o", "stderr"


class CompileError(Exception):
    """Its text is the diagnostics, ours or g++'s."""


def main(arguments: Sequence[str]) -> int:
    try:
        tree = find_tree(arguments[0])
        if tree is None:
            raise UsageError(
                f"{arguments[0]} lies in no CANN tree; tests/virtual_cann/run makes one and starts it there"
            )
        if "--version" in arguments[1:]:
            sys.stdout.write(version(tree))
            return 0
        run(parse(arguments[1:], tree.generation), tree)
    except UsageError as error:
        sys.stderr.write(f"bisheng: error: {error}\n")
        return 1
    except CompileError as error:
        sys.stderr.write(str(error))
        return 1
    return 0


def version(tree: Tree) -> str:
    """Two trees whose headers or compiler differ in a byte say so here, for caches that are keyed by this text."""
    return (
        f"bisheng of the virtual CANN {tree.version} (content {tree.content})\n"
        "clang version 15.0.5 is what the real one is; this one checks Ascend C and has g++ compile it for the host\n"
    )


def run(options: Options, tree: Tree) -> None:
    with tempfile.TemporaryDirectory(prefix="bisheng-") as name:
        scratch = Path(name)
        sources = options.sources
        objects = [str(scratch / f"{index}.o") for index in range(len(sources))]
        if options.compile_only:
            objects = [options.output or f"{Path(source.path).stem}.o" for source in sources]
        preprocessed = [scratch / f"{index}.ii" for index in range(len(sources))]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(partial(compile_source, options, tree), sources, objects, preprocessed))
        if not options.compile_only:
            link(objects, options, tree, scratch)


def compile_source(options: Options, tree: Tree, source: Source, output: str, preprocessed: Path) -> None:
    standard = f"-std={options.standard or 'c++17'}"
    command = ["g++", "-E", "-x", "c++", standard, *_predefined(source, tree), *options.preprocessor]
    if source.language == "asc":
        command += [argument for path in tree.include_dirs for argument in ("-isystem", str(path))]
    command += [*_depfile(options, output), "-o", str(preprocessed), source.path]
    sys.stderr.write(_run(command))
    if source.language != "c++":
        text = preprocessed.read_text("utf-8", errors="surrogateescape")
        preprocessed.write_text(translate(text, tree) + _REQUIRE_LINK, "utf-8", errors="surrogateescape")
    command = ["g++", "-c", "-x", "c++", "-fpreprocessed", standard, options.optimisation, *options.host_compiler]
    # Without contraction, so that an expression has the same bits wherever it is inlined. Without symbols that a whole
    # process has once: clang, which bisheng is, makes none, and a library's next version would use the first one's.
    command += ["-ffp-contract=off", "-fno-gnu-unique", "-fPIC", "-pthread"]
    compiled = _compiled_once(command, preprocessed, tree)
    sys.stderr.write((compiled / _SAID).read_text("utf-8"))
    shutil.copyfile(compiled / _OBJECT, output)


def _compiled_once(command: Sequence[str], preprocessed: Path, tree: Tree) -> Path:
    """A directory with the object and with what the compiler said, kept beside the trees: a test run compiles the same
    kernels for a dozen purposes, half a minute each."""
    compiler = shutil.which(command[0]) or ""
    status = os.stat(compiler) if compiler else None
    facts = (*command, compiler, str(status and (status.st_size, status.st_mtime_ns)), tree.content)
    key = hashlib.sha256(os.fsencode("\0".join(facts)) + b"\0" + preprocessed.read_bytes()).hexdigest()

    def compile_to(private: Path) -> None:
        said = _run([*command, "-o", str(private / _OBJECT), str(preprocessed)])
        (private / _SAID).write_text(said, "utf-8")

    return build_once(tree.root.parent.with_name("objects") / key[:32], None, compile_to)


def translate(text: str, tree: Tree) -> str:
    """Preprocessed Ascend C as C++ for the host. Raises CompileError with every problem that it has."""
    ours = tuple(f"{directory}{os.sep}" for directory in (tree.root, *_HEADERS))

    @functools.cache
    def is_users(file: str) -> bool:
        return not (file.startswith("<") or os.path.realpath(file).startswith(ours))

    tokens = tokenize(text, is_users)
    declarations = find_declarations(tokens)
    rewritten, problems = launches.rewrite(text, tokens, declarations)
    problems += device_code.check(tokens, declarations)
    if problems:
        raise CompileError("".join(f"{problem}\n" for problem in problems))
    return without_marks(rewritten)


def link(objects: Sequence[str], options: Options, tree: Tree, scratch: Path) -> None:
    stub = scratch / "link.cpp"
    stub.write_text(_PROVIDE_LINK, "utf-8")
    command = ["g++", "-shared"] if options.shared else ["g++"]
    command += ["-fPIC", "-pthread", *objects, *options.objects, str(stub), *options.linker]
    command += [f"-L{tree.root / 'lib64'}", "-lascendcl", "-o", options.output or "a.out"]
    sys.stderr.write(_run(command))


def _predefined(source: Source, tree: Tree) -> list[str]:
    if source.language == "c++":
        return []
    macros = ["__CCE_AICORE__=220", "__DAV_C220_VEC__=1", f"VIRTUAL_CANN_GENERATION={tree.generation}"]
    if tree.generation >= 9:
        macros += ["__NPU_ARCH__=2201", "__DAV_VEC__=1"]
    if source.language == "asc":
        macros.append("L2_CACHE_HINT")
    # The machine's headers, which the API's headers include.
    return [*(f"-D{macro}" for macro in macros), "-include", str(BUILTINS), "-isystem", str(VIRTUAL_CANN)]


def _depfile(options: Options, output: str) -> list[str]:
    if not options.wants_depfile:
        return []
    target = output if options.compile_only else options.output or "a.out"
    targets = [] if {"-MT", "-MQ"} & set(options.depfile_options) else ["-MT", target]
    file = options.depfile or str(Path(target).with_suffix(".d"))
    return ["-MD" if options.system_dependencies else "-MMD", "-MF", file, *targets, *options.depfile_options]


def _run(command: Sequence[str]) -> str:
    """What the host's compiler said though it went well."""
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise CompileError("bisheng: error: the virtual CANN needs g++ on PATH\n") from error
    if done.returncode:
        raise CompileError(done.stderr)
    return done.stderr
