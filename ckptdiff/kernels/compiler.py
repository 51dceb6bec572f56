"""How Numba compiles kernels: what only other kernels call becomes a part of these, and is not made ready to run by itself.

Numba gives every function a library of its own, which it optimises, turns into machine code and wraps for Python, whoever calls it, and
then links and optimises once more in each caller. Here a function that a kernel calls is typed and lowered alone: its caller's library
takes it in as it is, and LLVM optimises the whole. Kernels take half the time to compile, and are as fast.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="misc"

from __future__ import annotations

from typing import Any

from numba.core import compiler_machinery, typed_passes, types, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.registry import CPUDispatcher

OPTIONS = {"nopython": True, "nogil": True, "_nrt": False, "no_cfunc_wrapper": True}


class PartLibrary(JITCodeLibrary):
    """The code of a function that other kernels take in: linked with what it calls, and left as it is."""

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@compiler_machinery.register_pass(mutates_CFG=True, analysis_only=False)
class PartLowering(typed_passes.NativeLowering):
    """Lowers a function into a :class:`PartLibrary`. What stands for it in the types of its callers cannot be called."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        entry = object()
        state.targetctx.insert_user_function(entry, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=entry)
        return True


class KernelCompiler(CompilerBase):
    """The passes of Numba that kernels need: they have no closures, no context managers and no array expressions, and unroll nothing."""

    lowering: Any = typed_passes.NativeLowering

    def define_pipelines(self) -> list[Any]:
        passes = (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.RewriteSemanticConstants,
            untyped_passes.DeadBranchPrune,
            untyped_passes.GenericRewrites,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.IRLegalization,
            self.lowering,
            typed_passes.NoPythonBackend,
        )
        manager = compiler_machinery.PassManager("kernel")
        for step in passes:
            manager.add_pass(step, step._name)
        manager.finalize()
        return [manager]


class PartCompiler(KernelCompiler):
    """Compiles a function for the kernels that call it."""

    lowering = PartLowering


class Part(CPUDispatcher):
    """A function as other kernels take it in."""

    def __init__(self, function: Any) -> None:
        super().__init__(function, targetoptions={**OPTIONS, "no_cpython_wrapper": True}, pipeline_class=PartCompiler)

    def add_overload(self, result: Any) -> None:
        self.overloads[tuple(result.signature.args)] = result

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """The types of a call. A literal is taken for any number of its type, so that functions are not compiled anew for each."""
        return super().get_call_template([types.unliteral(kind) for kind in args], kws)


class Kernel(CPUDispatcher):
    """A function that Python calls; other kernels that call it take in its :class:`Part`."""

    def __init__(self, function: Any) -> None:
        super().__init__(function, targetoptions=dict(OPTIONS), pipeline_class=KernelCompiler)
        self._part = Part(function)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        return self._part.get_call_template(args, kws)

    def get_overload(self, signature: Any) -> Any:
        return self._part.get_overload(signature)
