# SPDX-License-Identifier: Apache-2.0
"""bisheng: preprocesses and checks each source, rewrites its launches, compiles it for the host; then links all.

g++ compiles. clang, on which the real bisheng is based, only parses, to check conversions (conversions.py).
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from virtual_cann.cache import build_once
from virtual_cann.compiler import conversions, device_code, launches, plugin, refusals
from virtual_cann.compiler.clang import FrontEndError
from virtual_cann.compiler.declarations import find_declarations
from virtual_cann.compiler.options import Options, Source, UsageError, parse
from virtual_cann.compiler.tokens import Diagnostic, tokenize, without_marks
from virtual_cann.compiler.tree import Tree, find_tree

VIRTUAL_CANN = Path(__file__).resolve().parents[1]
BUILTINS = VIRTUAL_CANN / "include" / "bisheng_builtins.h"
_BUILTINS_FOR_CLANG = VIRTUAL_CANN / "include" / "bisheng_builtins_for_clang.h"
_HEADERS = (VIRTUAL_CANN / "include", VIRTUAL_CANN / "machine")  # not the user's, so not judged

# Only bisheng can link a device object, because it adds the code that registers the image; an object of -xcce also
# needs --cce-fatobj-link, or a source of -xcce in the same command. Here that is a missing symbol for each language,
# whose name helps a reader of the linker's message.
_LINK_SYMBOLS = {"asc": "virtual_cann_link_with_bisheng", "cce": "virtual_cann_link_with_cce_fatobj_link"}
_REQUIRE_LINK = (
    'extern "C" __attribute__((visibility("hidden"))) char {0};\n'
    "[[gnu::used]] static const char* const virtual_cann_linked = &{0};\n"
)
_PROVIDE_LINK = 'extern "C" {{ __attribute__((visibility("hidden"))) char {0} = 0; }}\n'
# The files that are kept of a compilation.
_OBJECT, _SAID = "object.o", "stderr"


class CompileError(Exception):
    """Its text is the diagnostics, of this package or of g++."""


def main(arguments: Sequence[str]) -> int:
    try:
        tree = find_tree(arguments[0])
        if tree is None:
            raise UsageError(f"{arguments[0]} lies in no CANN tree; {VIRTUAL_CANN}/run makes one and starts it there")
        if "--version" in arguments[1:]:
            sys.stdout.write(version(tree))
            return 0
        run(parse(arguments[1:], tree.generation, os.environ.get(refusals.VARIABLE, "")), tree)
    except UsageError as error:
        sys.stderr.write(f"bisheng: error: {error}\n")
        return 1
    except CompileError as error:
        sys.stderr.write(str(error))
        return 1
    return 0


def version(tree: Tree) -> str:
    """Differs where a byte of the tree's headers or compiler does, for caches that have this text in their key."""
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
    command = ["g++", "-E", "-x", "c++", standard, *_preprocessing(options, tree, source, BUILTINS)]
    command += [*_depfile(options, output), "-o", str(preprocessed), source.path]
    sys.stderr.write(_run(command))
    if source.language != "c++":
        text = translate(preprocessed.read_text("utf-8", errors="surrogateescape"), tree, source.language)
        preprocessed.write_text(text, "utf-8", errors="surrogateescape")
    command = ["g++", "-c", "-x", "c++", "-fpreprocessed", standard, options.optimisation, *options.host_compiler]
    # No contraction, so that an expression has the same bits wherever it is inlined. No unique symbols
    # (STB_GNU_UNIQUE), which a process has once: a library's next version would use the first one's. clang, and so
    # bisheng, makes none.
    command += ["-ffp-contract=off", "-fno-gnu-unique", "-fPIC", "-pthread"]
    judge = partial(_judge_conversions, options, tree, source) if source.language != "c++" else None
    compiled = _compiled_once(command, preprocessed, tree, judge)
    sys.stderr.write((compiled / _SAID).read_text("utf-8"))
    if source.language == "c++":
        shutil.copyfile(compiled / _OBJECT, output)
    else:
        _mark_as_device_object(compiled / _OBJECT, source.language, output)


def _mark_as_device_object(compiled: Path, language: str, output: str) -> None:
    """The mark is a unit of its own, so that the cached object is the same for every language."""
    command = ["gcc", "-r", "-nostdlib", "-fPIC", "-x", "c++", "-", "-x", "none", str(compiled), "-o", output]
    _run(command, given=_REQUIRE_LINK.format(_LINK_SYMBOLS[language]))


def _compiled_once(command: Sequence[str], preprocessed: Path, tree: Tree, judge: Callable[[], None] | None) -> Path:
    """A directory with the object and the compiler's messages, cached beside the trees: a test run compiles the same
    kernels a dozen times, for half a minute each. An entry exists only if `judge` raised nothing."""
    compiler = shutil.which(command[0]) or ""
    status = os.stat(compiler) if compiler else None
    facts = (*command, compiler, str(status and (status.st_size, status.st_mtime_ns)), tree.content)
    key = hashlib.sha256(os.fsencode("\0".join(facts)) + b"\0" + preprocessed.read_bytes()).hexdigest()

    def compile_to(private: Path) -> None:
        if judge is not None:
            judge()
        said = _run([*command, "-o", str(private / _OBJECT), str(preprocessed)])
        (private / _SAID).write_text(said, "utf-8")

    return build_once(tree.root.parent.with_name("objects") / key[:32], None, compile_to)


def translate(text: str, tree: Tree, language: str) -> str:
    """Preprocessed Ascend C as C++ for the host. Raises CompileError with every problem in it."""
    through_plugin = tree.generation == 8.5 and language == "asc"
    tokens = tokenize(text, _users_files(tree))
    declarations = find_declarations(tokens)
    rewritten, problems = launches.rewrite(text, tokens, declarations, through_plugin)
    problems += device_code.check(tokens, declarations)
    if through_plugin:
        problems += plugin.unspelled_kernels(declarations)
    if problems:
        raise CompileError(_lines(problems))
    return without_marks(rewritten)


def _judge_conversions(options: Options, tree: Tree, source: Source) -> None:
    """Raises CompileError with every conversion that bisheng would refuse."""
    # CUDA is the only language with launches that clang knows. Of g++, clang uses the header directories only.
    arguments = ["-x", "cuda", "--cuda-host-only", "-nocudainc", "-nocudalib", "-ferror-limit=0", "-w"]
    arguments += ["-Xclang", "-fcuda-allow-variadic-functions"]
    arguments += [f"-std={options.standard or 'c++17'}", "-nostdinc", "-nostdinc++"]
    arguments += [*_preprocessing(options, tree, source, _BUILTINS_FOR_CLANG)]
    arguments += [word for path in _system_directories() for word in ("-isystem", str(path))]
    try:
        problems = conversions.check(
            tree.libclang, source.path, arguments, _users_files(tree), _within(_system_directories())
        )
    except (OSError, FrontEndError) as error:
        raise CompileError(
            f"bisheng: error: the virtual CANN needs libclang to read {source.path}: {error}\n"
        ) from error
    if problems:
        raise CompileError(_lines(problems))


def _users_files(tree: Tree) -> Callable[[str], bool]:
    is_others = _within([tree.root, *_HEADERS, *_system_directories()])
    return lambda file: not (file.startswith("<") or is_others(file))


def _within(directories: Sequence[Path]) -> Callable[[str], bool]:
    prefixes = tuple(f"{os.path.realpath(path)}{os.sep}" for path in directories)

    @functools.cache
    def is_within(file: str) -> bool:
        return os.path.realpath(file).startswith(prefixes)

    return is_within


@functools.cache
def _system_directories() -> list[Path]:
    """The directories in which g++ looks for headers."""
    said = _run(["g++", "-E", "-v", "-x", "c++", os.devnull, "-o", os.devnull])
    listed = said.partition("search starts here:\n#include <...>")[2].partition("\n")[2].partition("End of search")[0]
    return [Path(line.strip()) for line in listed.splitlines()]


def _lines(problems: Sequence[Diagnostic]) -> str:
    return "".join(f"{problem}\n" for problem in problems)


def link(objects: Sequence[str], options: Options, tree: Tree, scratch: Path) -> None:
    if problem := options.refusals.exceeded("link-units", len(objects) + len(options.objects)):
        raise CompileError(f"bisheng: error: linker command failed: {problem}\n")
    registered = options.device_languages or {"cce" if options.fatobj_link else "asc"}
    stub = scratch / "link.cpp"
    stub.write_text("".join(_PROVIDE_LINK.format(_LINK_SYMBOLS[language]) for language in registered), "utf-8")
    # gcc adds as little as bisheng does in a mode that adds nothing. The real linker accepts an undefined symbol, and
    # loading the library fails; --no-undefined reports it at once.
    command = ["g++"] if options.adds_libraries else ["gcc", "-Wl,--no-undefined"]
    command += ["-shared"] if options.shared else []
    command += ["-fPIC", "-pthread", *objects, *options.objects, str(stub), *options.linker]
    # The virtual NPU's Exp and Ln are calls of the host's libm; a device needs no library for them.
    command += [f"-L{tree.root / 'lib64'}", "-lascendcl"] if options.adds_libraries else ["-lm"]
    try:
        sys.stderr.write(_run([*command, "-o", options.output or "a.out"]))
    except CompileError as error:
        raise CompileError(_as_lld_says(str(error))) from error


def _as_lld_says(text: str) -> str:
    """The message, with lld's wording in front of GNU ld's: bisheng's users know, and search for, that one."""
    words = {"multiple definition of": "duplicate symbol", "undefined reference to": "undefined symbol"}
    found = re.findall(rf"({'|'.join(words)}) `([^']+)'", text)
    return "".join(f"ld.lld: error: {words[what]}: {symbol}\n" for what, symbol in dict.fromkeys(found)) + text


def _preprocessing(options: Options, tree: Tree, source: Source, builtins: Path) -> list[str]:
    """The options that decide the text that the compiler reads."""
    if source.language == "c++":
        return options.preprocessor
    macros = ["__CCE_AICORE__=220", "__DAV_C220_VEC__=1"]
    if tree.generation >= 8.5:
        macros += ["__NPU_ARCH__=2201", "__DAV_VEC__=1", "VIRTUAL_CANN_KNOWS_ASC=1"]
    if source.language == "asc":
        macros += ["TILING_KEY_VAR=0", "L2_CACHE_HINT"]
    # The machine's headers, which the API's headers include.
    before = [*(f"-D{macro}" for macro in macros), "-include", str(builtins), "-isystem", str(VIRTUAL_CANN)]
    adds_dirs = source.language == "asc" and "asc-dirs" not in options.refusals.forms
    dirs = tree.include_dirs if adds_dirs else ()
    return [*before, *options.preprocessor, *(word for path in dirs for word in ("-isystem", str(path)))]


def _depfile(options: Options, output: str) -> list[str]:
    if not options.wants_depfile:
        return []
    target = output if options.compile_only else options.output or "a.out"
    targets = [] if {"-MT", "-MQ"} & set(options.depfile_options) else ["-MT", target]
    file = options.depfile or str(Path(target).with_suffix(".d"))
    return ["-MD" if options.system_dependencies else "-MMD", "-MF", file, *targets, *options.depfile_options]


def _run(command: Sequence[str], given: str = "") -> str:
    """The compiler's warnings."""
    try:
        done = subprocess.run(
            command,
            input=given,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise CompileError("bisheng: error: the virtual CANN needs g++ on PATH\n") from error
    if done.returncode:
        raise CompileError(done.stderr)
    return done.stderr
