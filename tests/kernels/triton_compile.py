"""Compile Triton kernels for a GPU that is not there, and read what the assembler says of them.

Triton's compiler needs no device: with a target it goes down to PTX, and the `ptxas` inside its wheel assembles that
and reports registers, spills and stack; SASS (what the GPU runs) comes from the `cuobjdump` or `nvdisasm` beside it.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SM90 = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a kernel takes.

    Attributes:
        n_regs: registers a thread.
        n_spills: bytes of registers that went to memory, stores and loads.
        stack_bytes: local memory a thread.
        shared_bytes: shared memory a program.
        ptx: the assembler's input; sass: its output disassembled, empty where no disassembler came with Triton.
    """

    n_regs: int
    n_spills: int
    stack_bytes: int
    shared_bytes: int
    ptx: str
    sass: str


def compile_for_sm90(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    num_warps: int = 4,
    divisible_by_16: tuple[str, ...] = (),
) -> Compiled:
    """Compile a `@triton.jit` function for an H100 (sm_90) on any machine.

    Args:
        signature: type of each argument by name (`*fp32`, `i32`, `fp32`); those in `constexprs` may be left out.
        constexprs: value of each compile-time argument by name.
        divisible_by_16: arguments that a launch would find divisible by 16 (pointers are taken to be, always).
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: "constexpr" if name in constexprs else signature[name] for name in kernel.arg_names}
    aligned = {name for name, kind in types.items() if kind.startswith("*")} | set(divisible_by_16)
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=dict(constexprs), attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", SM90, 32), options={"num_warps": num_warps})
    report, sass = _assemble(built.asm["ptx"], built.asm["cubin"])
    spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.search(r"Used (\d+) registers", report)
    assert spilled is not None, report
    assert registers is not None, report
    return Compiled(
        n_regs=int(registers[1]),
        n_spills=int(spilled[2]) + int(spilled[3]),
        stack_bytes=int(spilled[1]),
        shared_bytes=built.metadata.shared,
        ptx=built.asm["ptx"],
        sass=sass,
    )


def _assemble(ptx: str, cubin: bytes) -> tuple[str, str]:
    """The assembler's report, and the disassembly."""
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        (Path(folder) / "kernel.cubin").write_bytes(cubin)
        report = subprocess.run(
            [tools / "ptxas", "-v", "--gpu-name", target[1], "-o", "/dev/null", "kernel.ptx"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        ).stderr
        for command in (["cuobjdump", "-sass"], ["nvdisasm"]):
            if (tools / command[0]).exists():
                words = [tools / command[0], *command[1:], "kernel.cubin"]
                return report, subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout
    return report, ""
