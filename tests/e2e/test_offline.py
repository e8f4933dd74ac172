"""Nothing asks the network for anything, unless pretrained weights are asked for by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# An audit hook sees every look-up and every connection of Python, whichever package makes it, and refuses it here.
WATCH = """
import json, sys
seen = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        seen.append([event, repr(arguments[-1])])
        raise PermissionError(f"the network was asked for: {event} {arguments}")

sys.addaudithook(watch)
"""

LIBRARY = """
import torch
import gca

x = torch.randn(1, 32, 5, 7)
for layer in (gca.GroupedCoordinateAttention, gca.CoordinateAttention, gca.SE, gca.CBAM):
    layer(32)(x).sum().backward()

import timm
images = torch.randn(1, 3, 64, 64)
model = gca.inject(timm.create_model("resnet10t"), groups=2, reduction=2).eval()
model(images)
assert len(gca.attention_maps(model, images)) == len(gca.injected(model)) == 4
gca.summary(model)
gca.eject(model)
"""

NETWORK = """
network = gca.GCAResUNet(3, encoder="tu-resnet10t", decoder_channels=(32, 16, 16, 8, 8)).eval()
network(images)
network.save_pretrained("network")
gca.GCAResUNet.from_pretrained("network")(images)
"""

REPORT = "\nprint(json.dumps(seen))\n"


def connections(code: str, folder: Path) -> list[list[str]]:
    command = [sys.executable, "-c", WATCH + code + REPORT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_library_and_the_network_connect_to_nothing(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason='needs pip install "gca-attn[seg]"')
    assert connections(LIBRARY + NETWORK, tmp_path) == []


def test_a_connection_would_be_seen_even_if_its_failure_is_swallowed(tmp_path: Path) -> None:
    code = """
import contextlib, urllib.request
with contextlib.suppress(OSError):
    urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)
"""
    assert [event for event, _ in connections(code, tmp_path)] == ["socket.getaddrinfo"]
