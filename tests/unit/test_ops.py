"""The choice among implementations of the operations."""

import copy
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gca
from gca import ops
from gca.ops import choice
from gca.ops.layout import channels_innermost


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8, 5, 6)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    load = choice._load
    absent = (None, "No module named 'numba'; " + choice.REMEDIES["numba"])
    monkeypatch.setattr(choice, "_load", lambda path: absent if path == "gca.ops.numba" else load(path))


def test_automatic_choice(x: Tensor) -> None:
    best = "torch" if ops.unavailable()["numba"] else "numba"
    assert ops.chosen(x) == ops.chosen(x.double()) == best
    assert ops.chosen(x.bfloat16()) == ops.chosen(x.half()) == "torch"
    assert ops.chosen(x.to("meta")) == "plain"


def test_automatic_choice_without_numba(x: Tensor, without_numba: None) -> None:
    assert ops.chosen(x) == "torch"
    assert ops.unavailable()["numba"] == "No module named 'numba'; pip install \"gca-attn[cpu]\""
    with pytest.raises(ops.ImplementationError, match=r"'numba' is not available: .* pip install \"gca-attn\[cpu\]\""):
        ops.use("numba")
    assert ops.chosen(x) == "torch"


def test_use_as_context_manager_and_as_function(x: Tensor) -> None:
    automatic = ops.chosen(x)
    with ops.use("reference"):
        assert ops.chosen(x) == "reference"
        with ops.use("plain"):
            assert ops.chosen(x) == "plain"
        with ops.use(None):
            assert ops.chosen(x) == automatic
        assert ops.chosen(x) == "reference"
    assert ops.chosen(x) == automatic
    restore = ops.use("torch")
    try:
        assert ops.chosen(x) == "torch"
    finally:
        restore.__exit__(None, None, None)
    assert ops.chosen(x) == automatic


@pytest.mark.skipif(not torch.cuda.is_available() or bool(ops.unavailable()["triton"]), reason="needs a GPU and triton")
def test_choice_on_a_gpu() -> None:
    assert ops.chosen(torch.empty(4, 16, 256, 256, device="cuda")) == "plain"  # launching is what takes time
    assert ops.chosen(torch.empty(5, 16, 256, 256, device="cuda")) == "triton"
    assert ops.chosen(torch.empty(5, 16, 32, 2**13, device="cuda")) == "plain"  # wider than the kernels go


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"no implementation is called 'cuda'; choose one of reference, plain, torch"):
        ops.use("cuda")


def test_what_an_implementation_cannot_take_is_refused_and_not_replaced(x: Tensor) -> None:
    gates = torch.rand(2, 8, 5), torch.rand(2, 8, 6)
    with ops.use("torch"):
        with pytest.raises(ops.ImplementationError, match=r"'torch' cannot take x: it needs floating point, got .*int"):
            ops.axis_gate(x.long(), *gates)
        with pytest.raises(
            ops.ImplementationError, match=r"'torch' cannot be captured .* use\(None\) or use\(\"plain\"\)"
        ):
            torch.func.vmap(ops.axis_pool)(x[None])
    if ops.unavailable()["numba"] is None:
        with ops.use("numba"):
            with pytest.raises(
                ops.ImplementationError, match=r"'numba' cannot take x: it takes float32 and float64, got"
            ):
                ops.axis_pool(x.half())
            with pytest.raises(ops.ImplementationError, match=r"'numba' cannot take x: it runs on CPU, got meta"):
                ops.axis_pool(x.to("meta"))
    if ops.unavailable()["triton"] is None:
        with ops.use("triton"), pytest.raises(ops.ImplementationError, match=r"it runs on CUDA, got (cpu|meta)"):
            ops.axis_pool(x.to("meta"))


@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention(8), gca.CoordinateAttention(8, 4)])
def test_captured_graphs_hold_the_plain_formula(layer: torch.nn.Module, x: Tensor) -> None:
    layer = copy.deepcopy(layer).eval()
    torch.compiler.reset()
    with ops.use("plain"):
        expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    assert compiled(x[:0]).shape == x[:0].shape
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), expected)
    torch.testing.assert_close(torch.func.vmap(layer)(x[:, None])[:, 0], expected)


class _AddIfInnermost(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if channels_innermost(x):
            return x + 1
        return x


def test_where_channels_are_innermost(x: Tensor) -> None:
    ask, last = _AddIfInnermost(), x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ask(last), x + 1)
    assert torch.equal(ask(x), x)
    assert torch.equal(ask(last[:, :1]), x[:, :1])
    compiled = torch.compile(ask, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), x + 1)
    assert torch.equal(compiled(last), x + 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*")  # deprecated, but still in use
        others = [torch.jit.script(ask), torch.jit.trace(ask, last, check_trace=False)]
    others += [torch.export.export(ask, (last,), strict=strict).module() for strict in (True, False)]
    for plain in (*others, torch.fx.symbolic_trace(ask)):
        assert torch.equal(plain(last), x)
    assert torch.equal(torch.func.vmap(ask)(last[None])[0], x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")  # torch itself, on first use
def test_forward_mode_differentiation(x: Tensor) -> None:
    layer = gca.GroupedCoordinateAttention(8, dtype=torch.float64).eval()
    x, tangent = x.double(), torch.randn(x.shape, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        forward = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    step = 1e-6 * tangent
    torch.testing.assert_close(forward, (layer(x + step) - layer(x - step)) / 2e-6, rtol=1e-6, atol=1e-6)


def test_per_sample_cotangents(x: Tensor) -> None:
    """torch.autograd.grad maps the backward functions over a batch of incoming gradients."""
    layer = gca.GroupedCoordinateAttention(8).eval()
    x.requires_grad_()
    y = layer(x)
    grads = torch.randn(3, *y.shape)
    (batched,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    for grad, ours in zip(grads, batched, strict=True):
        torch.testing.assert_close(ours, torch.autograd.grad(y, x, grad, retain_graph=True)[0])


def test_importing_gca_loads_no_compiler() -> None:
    code = "import sys, gca; sys.exit(' '.join({'numba', 'triton', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "\n" or done.returncode == 0, done.stderr


@pytest.fixture(params=["openmp", "python"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, where every element is worth a thread."""
    module = pytest.importorskip("gca.ops.threads", reason="needs numba")
    monkeypatch.setattr(module, "GRAIN", 1)
    if request.param == "python":
        monkeypatch.setattr(module, "_openmp", lambda: None)
    return module


@pytest.mark.parametrize("number", [1, 3])
def test_numba_keeps_to_torchs_threads_and_serves_several_callers(
    number: int, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    layer = gca.GroupedCoordinateAttention(8).eval()
    images = [torch.randn(2, 8, 7, 9) for _ in range(8)]
    with ops.use("plain"), torch.no_grad():
        expected = [layer(image) for image in images]
    with ops.use("numba"), ThreadPoolExecutor(4) as callers:
        actual = list(callers.map(lambda image: layer(image).detach(), images))
    torch.testing.assert_close(actual, expected)
    monkeypatch.undo()
    before = torch.get_num_threads()
    with ops.use("numba"):
        layer(images[0])
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the process has threads: that is the point
def test_numba_after_a_fork(x: Tensor, threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with ops.use("numba"):
        expected = ops.axis_pool(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(ops.axis_pool(x)[0], expected[0]) else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("tasks", [1, 3, 1000])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_task_is_done_once(number: int, tasks: int, threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    array, size, tasks_of = threads.array, threads.size, threads.tasks

    @threads.compiled
    def count(job: Any) -> None:
        done, step = array(job, 0, np.float32), size(job, 1)
        for task in tasks_of(job):
            done[task] += step

    done = torch.zeros(tasks + 1)
    threads.run(count, tasks, tasks, [7, 2], [done])
    assert done.tolist() == [2] * tasks + [0]


def of_all_loops(numba: Any, x: Tensor, of: str) -> Iterator[tuple[Any, list[Tensor], list[Any], list[int]]]:
    """Loops over ``"planes"`` or ``"images"``: results, arrays (numbers are those of the results), and flags."""
    b, c, h, w = x.shape
    grad = torch.rand_like(x)
    gates, shares = torch.rand(2, b, c, h + w, dtype=x.dtype)
    with ops.use("reference"):
        pooled, tops = ops.pool_lines(x)[0], ops.pool_lines(x, "max")[0]
        inputs = x.clone().requires_grad_(), gates.clone().requires_grad_()
        linked, again = ops.pool_lines(inputs[0])
        y = ops.gate_lines(again, inputs[1])
        grad_x, grad_gates = torch.autograd.grad((linked, y), inputs, (shares, grad))
    yield getattr(numba, f"_gate_{of}"), [y.detach()], [x, 0, gates], []
    yield getattr(numba, f"_pool_{of}"), [pooled, tops], [x, 0, 1], [1, 1, 1]
    yield getattr(numba, f"_gate_backward_{of}"), [grad_gates], [grad, x, gates, 0], []
    yield getattr(numba, f"_pool_backward_{of}"), [grad_x], [x, grad, 0, gates, tops, shares], [1, 1]


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("columns", [1, 3, 7, 9])
def test_numba_writes_nothing_beside_its_tasks(columns: int, rows: int, threads: Any) -> None:
    from gca.ops import numba

    lanes = numba._at_once(columns, numba.COLUMNS)
    x = torch.rand(6, 1, rows, columns, dtype=torch.float64)
    for loops, results, arrays, flags in of_all_loops(numba, x, "planes"):
        into = [torch.full_like(result, 7) for result in results]
        arrays = [array if isinstance(array, Tensor) else into[array] for array in arrays]
        threads.run(loops(lanes, np.float64), 5, x.numel(), [rows, columns, *flags], arrays)
        for ours, formula in zip(into, results, strict=True):
            torch.testing.assert_close(ours[:5], formula[:5])
            assert (ours[5] == 7).all()


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("channels", [3, 19, 70])
def test_numba_does_images_in_parts(channels: int, parts: int, threads: Any) -> None:
    from gca.ops import numba

    def in_order(t: Tensor) -> Tensor:
        return t.movedim(1, -1).contiguous()

    lanes = numba._at_once(channels, numba.CHANNELS)
    x = torch.rand(3, channels, 4, 5, dtype=torch.float64)
    for loops, results, arrays, flags in of_all_loops(numba, x, "images"):
        into = [torch.full_like(in_order(result), 7) for result in results]
        arrays = [in_order(array) if isinstance(array, Tensor) else into[array] for array in arrays]
        threads.run(loops(lanes, np.float64), 2 * parts, x.numel(), [4, 5, channels, parts, *flags], arrays)
        for ours, formula in zip(into, results, strict=True):
            torch.testing.assert_close(ours[:2], in_order(formula)[:2])
            assert (ours[2] == 7).all()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for a processor of AMD")
@pytest.mark.parametrize(("of", "lanes"), [("planes", 8), ("images", 8), ("images", 32)])
def test_numba_writes_without_masks(of: str, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = pytest.importorskip("gca.ops.threads", reason="needs numba")
    if threads.AS_PYTHON:
        pytest.skip("numba is told not to compile")
    import llvmlite.binding as llvm
    import numba as compiler

    from gca.ops import numba

    # A kernel from disk has no code to show.
    monkeypatch.setattr(threads, "cfunc", lambda signature, cache, **options: compiler.cfunc(signature, **options))
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(cpu="znver3", opt=3)
    for name in ("pool", "gate", "gate_backward", "pool_backward"):
        loops = getattr(numba, f"_{name}_{of}").__wrapped__(lanes, np.float32)
        code = machine.emit_assembly(llvm.parse_assembly(loops.inspect_llvm()))
        assert "%ymm" in code, name  # whole registers are used
        assert "vmaskmov" not in code, name


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux wheels of torch are linked to GNU OpenMP")
def test_torchs_own_threads_are_found() -> None:
    assert pytest.importorskip("gca.ops.threads", reason="needs numba")._openmp() is not None
