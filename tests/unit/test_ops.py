"""The choice among backends of the operations."""

import asyncio
import copy
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gca
from gca import ops
from gca.ops import autograd, dispatch
from gca.ops.plain import combine


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8, 5, 6)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    load = dispatch._load
    absent = (None, "No module named 'numba'; " + dispatch.REMEDIES["numba"])
    monkeypatch.setattr(dispatch, "_load", lambda name: absent if name == "numba" else load(name))


def test_automatic_choice(x: Tensor) -> None:
    best = "torch" if ops.backends()["numba"] else "numba"
    assert ops.selected(x) == ops.selected(x.double()) == best
    assert ops.selected(x.bfloat16()) == ops.selected(x.half()) == "torch"
    assert ops.selected(x.to("meta")) == "plain"


def test_automatic_choice_without_numba(x: Tensor, without_numba: None) -> None:
    assert ops.selected(x) == "torch"
    assert ops.backends()["numba"] == "No module named 'numba'; pip install \"gca-attn[cpu]\""
    with pytest.raises(ops.BackendError, match=r"'numba' is not available: .* pip install \"gca-attn\[cpu\]\""):
        ops.backend("numba")
    assert ops.selected(x) == "torch"


def test_backend_as_context_manager_and_as_function(x: Tensor) -> None:
    automatic = ops.selected(x)
    with ops.backend("reference"):
        assert ops.selected(x) == "reference"
        with ops.backend("plain"):
            assert ops.selected(x) == "plain"
        with ops.backend(None):
            assert ops.selected(x) == automatic
        assert ops.selected(x) == "reference"
    assert ops.selected(x) == automatic
    restore = ops.backend("torch")
    try:
        assert ops.selected(x) == "torch"
    finally:
        restore.__exit__(None, None, None)
    assert ops.selected(x) == automatic


@pytest.mark.skipif(not torch.cuda.is_available() or bool(ops.backends()["triton"]), reason="needs a GPU and triton")
def test_choice_on_a_gpu() -> None:
    assert ops.selected(torch.empty(4, 16, 256, 256, device="cuda")) == "plain"  # launching is what takes time
    assert ops.selected(torch.empty(5, 16, 256, 256, device="cuda")) == "triton"
    assert ops.selected(torch.empty(5, 16, 32, 2**13, device="cuda")) == "plain"  # wider than the kernels go


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"no backend is called 'cuda'; choose one of reference, plain, torch"):
        ops.backend("cuda")


def test_what_a_backend_cannot_take_is_refused_and_not_replaced(x: Tensor) -> None:
    gates = torch.rand(2, 8, 5), torch.rand(2, 8, 6)
    with ops.backend("torch"):
        with pytest.raises(ops.BackendError, match=r"'torch' cannot take x: it needs floating point, got .*int"):
            ops.axis_gate(x.long(), *gates)
        with pytest.raises(
            ops.BackendError, match=r"'torch' cannot take x: a graph is traced .*; backend\(None\) chooses one that can"
        ):
            torch.func.vmap(ops.axis_pool)(x[None])
    if ops.backends()["numba"] is None:
        with ops.backend("numba"):
            with pytest.raises(ops.BackendError, match=r"'numba' cannot take x: it takes float32 and float64, got"):
                ops.axis_pool(x.half())
            with pytest.raises(ops.BackendError, match=r"'numba' cannot take x: it runs on CPU, got meta"):
                ops.axis_pool(x.to("meta"))
    if ops.backends()["triton"] is None:
        with ops.backend("triton"), pytest.raises(ops.BackendError, match=r"it runs on CUDA, got (cpu|meta)"):
            ops.axis_pool(x.to("meta"))


@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention(8), gca.CoordinateAttention(8, 4)])
def test_graphs_hold_the_plain_formula(layer: torch.nn.Module, x: Tensor) -> None:
    layer = copy.deepcopy(layer).eval()
    torch.compiler.reset()
    with ops.backend("plain"):
        expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    assert compiled(x[:0]).shape == x[:0].shape
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), expected)
    torch.testing.assert_close(torch.func.vmap(layer)(x[:, None])[:, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_compiled_maxima_share_their_gradient_among_ties(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def loss(x: Tensor) -> Tensor:
        return sum((t.float() ** 2).sum() for t in ops.axis_pool(x, "max"))  # type: ignore[return-value]

    x = torch.randint(-2, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with ops.backend("reference"):
        loss(expected := x.clone().requires_grad_()).backward()
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled(found := x.clone().requires_grad_()).backward()
    torch.testing.assert_close(found.grad, expected.grad)
    for_each = torch.compile(torch.func.vmap(torch.func.grad(lambda image: loss(image[None]))), backend="aot_eager")
    torch.testing.assert_close(for_each(x), expected.grad)  # no custom gradient there


def test_why_backends_cannot_take_an_input(x: Tensor) -> None:
    reasons = ops.backends(x.long())
    assert reasons["reference"] is reasons["plain"] is None
    assert reasons["torch"] == "it needs floating point, got torch.int64"
    assert ops.backends(x)["torch"] is None
    if ops.backends()["triton"] is None and not torch.cuda.is_available():
        assert ops.backends(x)["triton"] == "it runs on CUDA, got cpu"


def test_blocks_that_end_interleaved(x: Tensor) -> None:
    automatic = ops.selected(x)
    first, second = ops.backend("plain"), ops.backend("reference")
    first.__exit__(None, None, None)
    assert ops.selected(x) == "reference"
    second.__exit__(None, None, None)
    assert ops.selected(x) == automatic


def test_no_thread_and_no_task_decides_for_another(x: Tensor) -> None:
    automatic = ops.selected(x)
    with ops.backend("plain"), ThreadPoolExecutor(1) as other:
        assert other.submit(ops.selected, x).result() == automatic
        other.submit(ops.backend, "reference").result()
        assert ops.selected(x) == "plain"

    async def task(name: str) -> str:
        with ops.backend(name):
            await asyncio.sleep(0)  # the other one enters its block
            return ops.selected(x)

    async def both() -> list[str]:
        return await asyncio.gather(task("plain"), task("reference"))

    assert asyncio.run(both()) == ["plain", "reference"]
    assert ops.selected(x) == automatic


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
    module = pytest.importorskip("gca.ops.numba.threads", reason="needs numba")
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
    with ops.backend("plain"), torch.no_grad():
        expected = [layer(image) for image in images]

    def call(image: Tensor) -> Tensor:
        with ops.backend("numba"):
            return layer(image).detach()

    with ThreadPoolExecutor(4) as callers:
        actual = list(callers.map(call, images))
    torch.testing.assert_close(actual, expected)
    monkeypatch.undo()
    before = torch.get_num_threads()
    with ops.backend("numba"):
        layer(images[0])
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the process has threads: that is the point
def test_numba_after_a_fork(x: Tensor, threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with ops.backend("numba"):
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


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_()


KERNELS = ("gate", "pool", "gate_backward", "pool_backward")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("inner", [1, 3, 9, 19, 70])
@pytest.mark.parametrize("h", [1, 4, 7])
def test_numba_writes_nothing_beside_its_tasks(
    h: int, inner: int, parts: int, channels_last: bool, threads: Any
) -> None:
    """Of three images or planes only two are done; in channels_last each in some parts of its channels."""
    if not channels_last and parts > 1:
        pytest.skip("planes are done whole")
    from gca.ops import numba
    from gca.ops.numba import kernels

    outer = 5 if channels_last else 1
    sizes = numba.VECTORS_OF_CHANNELS if channels_last else numba.VECTORS_OF_COLUMNS
    vector = next(size for size in sizes if size <= inner)
    shape = (3, inner, h, outer) if channels_last else (3, 1, h, inner)

    def in_order(t: Tensor) -> Tensor:
        return t.movedim(1, -1).contiguous() if channels_last else t.contiguous()

    x, grad = _leaf(torch.rand(shape, dtype=torch.float64)), torch.rand(shape, dtype=torch.float64)
    gates, grad_means, grad_maxima = torch.rand(3, *shape[:2], h + shape[3], dtype=torch.float64)
    gates = _leaf(gates)
    with ops.backend("reference"):
        *features, link = autograd.pool(x, "avg+max")
        y = autograd.gate(x, gates, link=link)
        grads = torch.autograd.grad((y, *features), (x, gates), (grad, grad_means, grad_maxima))
    means, maxima = (t.detach() for t in features)
    cases = {
        "gate": ([y.detach()], [x, 0, gates]),
        "pool": ([means, maxima], [x, 0, 1]),
        "gate_backward": ([grads[1]], [grad, x, gates, 0]),
        "pool_backward": ([grads[0]], [x, grad, 0, gates, maxima, grad_means, grad_maxima]),
    }
    for name in KERNELS:
        results, arrays = cases[name]
        into = [torch.full_like(in_order(result), 7) for result in results]
        arrays = [in_order(array.detach()) if isinstance(array, Tensor) else into[array] for array in arrays]
        loops = getattr(kernels, name)(vector, np.float64, channels_last)
        threads.run(loops, 2 * parts, x.numel(), [h, outer, inner, parts, 1, 1], arrays)
        for ours, formula in zip(into, results, strict=True):
            torch.testing.assert_close(ours[:2], in_order(formula)[:2], msg=lambda m, name=name: f"{name}: {m}")
            assert (ours[2] == 7).all(), name


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for a processor of AMD")
@pytest.mark.parametrize(("channels_last", "vector"), [(False, 8), (True, 8), (True, 32)])
def test_numba_writes_without_masks(channels_last: bool, vector: int, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = pytest.importorskip("gca.ops.numba.threads", reason="needs numba")
    if threads.AS_PYTHON:
        pytest.skip("numba is told not to compile")
    import llvmlite.binding as llvm

    from gca.ops.numba import kernels

    monkeypatch.setattr(
        threads, "_Cache", lambda loops: threads.caching.NullCache()
    )  # from disk it has no code to show
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(cpu="znver3", opt=3)
    for name in KERNELS:
        loops = getattr(kernels, name).__wrapped__(vector, np.float32, channels_last)
        code = machine.emit_assembly(llvm.parse_assembly(loops._library.get_llvm_str()))
        assert "%ymm" in code, name  # whole registers are used
        assert "vmaskmov" not in code, name


def on_disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[Any, Callable[[], Any]]:
    """The module that keeps kernels on disk, and a kernel made anew from what it keeps in a folder."""
    threads = pytest.importorskip("gca.ops.numba.threads", reason="needs numba")
    if threads.AS_PYTHON:
        pytest.skip("numba is told not to compile")
    from gca.ops.numba import kernels

    monkeypatch.setattr(threads.config, "CACHE_DIR", str(folder))
    return threads, lambda: kernels.gate.__wrapped__(8, np.float32, False)


def test_kernels_on_disk_are_valid_until_a_file_of_theirs_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, kernel = on_disk(monkeypatch, tmp_path)
    assert [kernel()._cache_hits, kernel()._cache_hits] == [0, 1]
    monkeypatch.setattr(threads, "_SOURCES", b"simd.py has changed")
    assert [kernel()._cache_hits, kernel()._cache_hits] == [0, 1]


@pytest.mark.parametrize("fault", ["no place", "no room"])
def test_numba_where_no_cache_can_be_written(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, kernel = on_disk(monkeypatch, tmp_path)
    if fault == "no place":
        monkeypatch.setattr(threads._Implementation, "_locator_classes", [])
    else:

        def full(*_: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(threads.caching.IndexDataCacheFile, "save", full)
    y = torch.zeros(1, 1, 2, 9)
    threads.run(kernel(), 1, 18, [2, 1, 9, 1, 0], [torch.ones(1, 1, 2, 9), y, torch.full((1, 1, 11), 2.0)])
    assert torch.equal(y, torch.full((1, 1, 2, 9), 4.0))
    assert not list(tmp_path.rglob("*.nbc"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux wheels of torch are linked to GNU OpenMP")
def test_torchs_own_threads_are_found() -> None:
    assert pytest.importorskip("gca.ops.numba.threads", reason="needs numba")._openmp() is not None


@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention, gca.CoordinateAttention])
@pytest.mark.parametrize("training", [False, True])
def test_float16_does_not_overflow_where_the_gates_are_computed(layer: Any, training: bool) -> None:
    """Mean plus maximum is 120,000, and float16 ends at 65,504: the gates are those of the same numbers in float32."""
    half = layer(8, 4, dtype=torch.float16).train(training)
    full = layer(8, 4).train(training)
    full.load_state_dict(half.state_dict())
    x = 6e4 * torch.rand(2, 8, 5, 6).add(9).div(10).half()
    for ours, theirs in zip(half.gates(x)[:2], full.gates(x.float())[:2], strict=True):
        torch.testing.assert_close(ours, theirs.half(), rtol=2e-2, atol=2e-3)
    assert half(x).isfinite().all()
    assert int(half.bn1.num_batches_tracked) == (2 if training else 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention, gca.CoordinateAttention])
def test_gates_are_those_that_forward_multiplies_by(layer: Any, layout: torch.memory_format, x: Tensor) -> None:
    module, x = layer(8, 4).eval(), x.contiguous(memory_format=layout)
    gate_h, gate_w, *_ = module.gates(x)
    assert torch.equal(ops.axis_gate(x, gate_h, gate_w), module(x))


def test_nothing_to_combine() -> None:
    with pytest.raises(ValueError, match="neither means nor maxima"):
        combine(None, None)


def test_other_pools_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pool must be one of 'avg', 'max', 'avg\+max', got 'mean'"):
        gca.ops.axis_pool(torch.randn(1, 2, 3, 4), "mean")


@pytest.mark.parametrize("shape", [(2, 16, 0, 5), (2, 16, 5, 0)])
def test_means_of_nothing_are_nan_by_every_backend(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    for name in ("plain", None):
        with gca.ops.backend(name):
            of_rows, of_columns = gca.ops.axis_pool(x, "avg")
        assert of_rows.shape == (2, 16, shape[2])
        assert of_columns.shape == (2, 16, shape[3])
        assert of_rows.isnan().all()
        assert of_columns.isnan().all()
    if gca.ops.backends()["numba"] is None:  # it is installed
        assert "at least" in str(gca.ops.backends(x)["numba"])


def test_a_choice_can_be_used_again() -> None:
    x, choice = torch.randn(1, 2, 3, 4), gca.ops.backend("plain")
    with choice:
        assert gca.ops.selected(x) == "plain"
    with choice:
        assert gca.ops.selected(x) == "plain"
    assert gca.ops.selected(x) != "plain"


def test_forward_mode_through_a_compiled_layer() -> None:
    layer, x = gca.GroupedCoordinateAttention(8).double().eval(), torch.randn(2, 8, 4, 3, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager")
    with torch.autograd.forward_ad.dual_level():
        found, expected = (
            torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))).tangent
            for f in (compiled, layer)
        )
    torch.testing.assert_close(found, expected)
