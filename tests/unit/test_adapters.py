"""``gca.save`` and ``gca.load``: the same network again, from one file without pickles, or an error and no change."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

import gca
from tests.conftest import randomize
from tests.models import NETWORKS

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LIBRARIES = {
    "timm": "resnet14t",
    "timm, occupied": "seresnet18",
    "torchvision": "torchvision resnet18",
    "smp": "smp resnet34",
    "MONAI": "monai basic",
    "transformers": "transformers basic",
}


class Scale(nn.Module):
    """A layer of one's own."""

    def __init__(self, channels: int, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def resnet(classes: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("resnet14t", num_classes=classes).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "attention.safetensors"


@pytest.mark.parametrize("policy", ["replace", "stack"])
@pytest.mark.parametrize("name", LIBRARIES.values(), ids=LIBRARIES)
def test_the_same_network_again(name: str, policy: str, path: Path) -> None:
    plain = randomize(NETWORKS[name][0]()).eval()
    again = copy.deepcopy(plain)
    gca.inject(plain, groups=1, pool="max", reduction=4, on_existing=policy)
    gca.inject(plain, "se", reduction=2, identity_init=False, on_existing="stack")
    randomize(plain)
    gca.save(plain, path)
    again.load_state_dict(plain.state_dict(), strict=False)  # as if both had the same pretrained weights
    assert gca.load(again, path) is again
    assert [str(layer) for layer in gca.injected(again).values()] == [str(x) for x in gca.injected(plain).values()]
    assert [key for key, _ in again.named_parameters()] == [key for key, _ in plain.named_parameters()]
    with torch.no_grad():
        assert torch.equal(again(IMAGES), plain(IMAGES))


def test_only_attention_and_what_is_named_is_in_the_file(path: Path) -> None:
    model = gca.inject(resnet(), stages=[3, 4])
    gca.save(model, path, also=["fc"])
    keys = {key for key in model.state_dict() if ".se." in key or key.startswith("fc.")}
    assert load_file(path).keys() == keys
    other = resnet()
    nn.init.zeros_(other.fc.weight)
    gca.load(other, path)
    assert torch.equal(other(IMAGES), model(IMAGES))
    assert not list(path.parent.glob("*.part"))


def test_a_part_that_holds_attention_itself(path: Path) -> None:
    model = randomize(gca.inject(resnet()))
    gca.save(model, path, also=["layer4", "fc"])
    other = resnet()
    other.load_state_dict({k: x for k, x in model.state_dict().items() if not k.startswith("layer4")}, strict=False)
    gca.load(other, path)
    assert torch.equal(other(IMAGES), model.eval()(IMAGES))


def test_layers_take_dtype_and_mode_of_the_block(path: Path) -> None:
    gca.save(gca.inject(resnet()), path)
    other = gca.load(resnet().double().train(), path)
    assert {p.dtype for p in other.parameters()} == {torch.float64}
    assert all(layer.training for layer in gca.injected(other).values())


def test_layers_of_ones_own(path: Path) -> None:
    model = gca.inject(gca.inject(resnet(), Scale, start=0.5, stages=[1, 2]), lambda c: gca.SE(c, 8), stages=3)
    gca.save(model, path)
    with pytest.raises(ValueError, match=r"layer1\.0\.se was built by tests\.unit\.test_adapters\.Scale, .*layer="):
        gca.load(resnet(), path)
    for layer in (Scale, {f"{__name__}.Scale": Scale}):
        other = gca.load(resnet(), path, layer)
        assert [type(x) for x in gca.injected(other).values()] == [Scale, Scale, gca.SE]
        assert torch.equal(other(IMAGES), model(IMAGES))


class Odd(Scale):
    def get_extra_state(self) -> str:
        return "odd"

    def set_extra_state(self, state: object) -> None:
        pass


def replaced_by_hand() -> nn.Module:
    model = gca.inject(resnet())
    model.layer1[0].se = Scale(256)
    return model


@pytest.mark.parametrize(
    ("build", "also", "error", "message"),
    [
        (resnet, [], ValueError, r"nothing to save: gca\.inject has placed no attention in this ResNet"),
        (lambda: gca.inject(resnet()), ["head"], ValueError, "this ResNet has no module 'head'; its parts are conv1, "),
        (lambda: gca.inject(resnet()), [""], ValueError, "this ResNet has no module ''"),
        (
            lambda: gca.inject(resnet(), lambda c, start: Scale(c), start=nn.Identity()),
            [],
            TypeError,
            "how layer1.0.se, a Scale, is built again: its options are no JSON",
        ),
        (lambda: gca.inject(resnet(), Odd), [], TypeError, r"only tensors .* layer1\.0\.se\._extra_state is a str"),
        (replaced_by_hand, [], TypeError, r"layer1\.0\.se, a Scale, is built again: gca\.inject did not build it"),
        (lambda: "resnet50", [], TypeError, r"model must be a torch\.nn\.Module"),
    ],
)
def test_what_cannot_be_saved(
    build: Callable[[], nn.Module], also: list[str], error: type[Exception], message: str, path: Path
) -> None:
    with pytest.raises(error, match=message):
        gca.save(build(), path, also=also)
    assert not list(path.parent.iterdir())


def test_one_layer_in_several_places_cannot_be_saved(path: Path) -> None:
    shared = Scale(64)
    model = gca.inject(torchvision.models.resnet18(), lambda channels: shared, stages=1)
    with pytest.raises(ValueError, match=r"layer1\.1\.attention is the same module as layer1\.0\.attention"):
        gca.save(model, path)


def test_a_file_that_is_there_is_replaced_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gca.save(gca.inject(resnet()), path)
    before = path.read_bytes()

    def fail(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        gca.save(gca.inject(resnet(), "se"), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def snapshot(model: nn.Module) -> tuple[list[object], dict[str, torch.Tensor]]:
    parts = [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]
    return parts, {key: x.clone() for key, x in model.state_dict().items()}


def edit(change: Callable[[dict[str, torch.Tensor], dict[str, object]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            content = json.loads(file.metadata()["gca"])
        tensors = load_file(path)
        change(tensors, content)
        save_file(tensors, path, {"gca": json.dumps(content)})

    return apply


def drop(tensors: dict[str, torch.Tensor], content: dict[str, object]) -> None:
    del tensors["layer1.0.se.conv2.bias"]


def reshape(tensors: dict[str, torch.Tensor], content: dict[str, object]) -> None:
    tensors["fc.weight"] = torch.zeros(9, 512)


@pytest.mark.parametrize(
    ("damage", "network", "message"),
    [
        (lambda path: path.write_bytes(b"{}"), resnet, "attention.safetensors is no safetensors file"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), resnet, "describes no attention; .* gca.save wrote"),
        (edit(lambda t, c: c.update(version=9)), resnet, "has version 9 of the format, wanted 1; update gca-attn"),
        (edit(lambda t, c: c["layers"][0].pop("name")), resnet, "the description in .* is damaged"),
        (edit(lambda t, c: c.clear()), resnet, "the description in .* is damaged"),
        (edit(drop), resnet, r"weights of layer1\.0\.se do not fit: .*\n.*Missing key"),
        (edit(reshape), resnet, r"the file's 'fc' is not that of this network; they differ in weight \(\(9, 512\)"),
        (None, lambda: timm.create_model("resnet18"), "block 'layer1.0' has 64 channels, the file's has 256"),
        (None, torchvision.models.resnet18, r"has attention at 'layer1\.0\.se', and this ResNet no block for it; .*"),
        (None, lambda: gca.inject(resnet()), r"block 'layer1\.0' already has attention .* call gca\.eject first"),
        (
            None,
            lambda: timm.create_model("resnet14t", block_args={"attn_layer": "se"}),
            "had no attention before, block 'layer1.0' has SEModule; load into the network",
        ),
        (None, lambda: resnet(5), r"'fc' is not that of this network; they differ in .*\(5,\)"),
    ],
)
def test_what_does_not_fit_leaves_the_network_untouched(
    damage: Callable[[Path], None] | None, network: Callable[[], nn.Module], message: str, path: Path
) -> None:
    gca.save(gca.inject(resnet()), path, also=["fc"])
    if damage:
        damage(path)
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        gca.load(model, path)
    parts, state = snapshot(model)
    assert parts == before[0]
    torch.testing.assert_close(state, before[1], rtol=0, atol=0)


def test_a_stacked_layer_needs_what_it_was_stacked_on(path: Path) -> None:
    gca.save(gca.inject(timm.create_model("seresnet18"), on_existing="stack"), path)
    model = timm.create_model("resnet18")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"stacks layer1\.0\.se\.stacked on .*, and block 'layer1\.0' has none"):
        gca.load(model, path)
    assert snapshot(model)[0] == before[0]


def test_a_decoder_too(path: Path) -> None:
    def unet() -> nn.Module:
        torch.manual_seed(3)
        return smp.Unet("resnet18", encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8)).eval()

    model = unet()
    gca.inject(model.decoder, "cbam", reduction=2)
    randomize(gca.inject(model, "se", on_existing="skip"))
    gca.save(model, path)
    other = unet()
    other.load_state_dict({k: x for k, x in model.state_dict().items() if k in other.state_dict()})
    assert torch.equal(gca.load(other, path)(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    "change",
    [
        {"options": []}, {"options": None}, {"block": 3}, {"layer": {}}, {"name": 1}, {"stacked": "no"},
        {"channels": "64"}, {"replaces": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_of_other_types_is_damaged(change: dict[str, object], path: Path) -> None:
    gca.save(gca.inject(resnet()), path)
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["gca"])
    first, second, *others = content["layers"]
    for layers in ([{**first, **change}, second, *others], [first, first], [], 5):
        save_file(load_file(path), path, {"gca": json.dumps({**content, "layers": layers})})
        with pytest.raises(ValueError, match=r"the description in .* is damaged; save it again with gca\.save"):
            gca.load(resnet(), path)
    save_file(load_file(path), path, {"gca": "[" * 100_000})
    with pytest.raises(ValueError, match="is damaged"):
        gca.load(resnet(), path)


def test_layers_that_were_changed_are_not_saved(path: Path) -> None:
    network = gca.inject(resnet(), "se")
    layer = network.layer1[0].se
    prune.l1_unstructured(layer.fc1, "weight", 0.5)
    with pytest.raises(ValueError, match=r"layer1\.0\.se is no SE as it was built, it differs in fc1\.weight"):
        gca.save(network, path)
    prune.remove(layer.fc1, "weight")  # as the message says
    gca.save(network, path)
    assert torch.equal(gca.load(resnet(), path)(IMAGES), network(IMAGES))


def test_nothing_is_loaded_into_a_network_without_memory(path: Path) -> None:
    gca.save(gca.inject(resnet()), path)
    with torch.device("meta"):
        network = resnet()
    with pytest.raises(ValueError, match=r"is on the meta device, where weights have no values; .* to_empty"):
        gca.load(network, path)
    assert gca.injected(network) == {}


def test_a_folder_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot write .*none.attention: there is no folder .*none"):
        gca.save(gca.inject(resnet()), path.parent / "none" / "attention")
