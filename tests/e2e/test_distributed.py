"""Two processes on one machine compute the gradients of one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.models import resnet
from torch import nn

import gca

LAYERS = ("gca", "coord", "cbam", "se")
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(layer: str) -> nn.Module:
    torch.manual_seed(0)
    network = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], channels=(8, 16, 24, 32), num_classes=4)
    # Batch norm in eval mode: its statistics are per process, everything else must agree.
    return gca.inject(network, layer, reduction=2).eval()


def gradients(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    network(images).square().mean().backward()
    return {name.removeprefix("module."): p.grad for name, p in network.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for layer in LAYERS:
        parallel = nn.parallel.DistributedDataParallel(build(layer))
        with pytest.raises(TypeError, match=r"DistributedDataParallel cannot be changed, .* \(or pass model.module\)"):
            gca.inject(parallel)
        torch.save(gradients(parallel, IMAGES[2 * rank : 2 * rank + 2]), f"{folder}/{layer}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this build of torch has no gloo")
@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    for layer in LAYERS:
        network = build(layer)
        expected = gradients(network, IMAGES)
        assert len(expected) == len(list(network.parameters()))
        for rank in range(2):
            grads = torch.load(tmp_path / f"{layer}{rank}.pt", weights_only=True)
            assert grads.keys() == expected.keys()
            for name, wanted in expected.items():
                torch.testing.assert_close(grads[name], wanted, msg=f"{layer}: {name}")
