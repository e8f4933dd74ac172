from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gca
from tests.conftest import LAYERS, randomize

settings.register_profile("steady", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("steady")

Case = tuple[Tensor, nn.Module]


@st.composite
def cases(draw: st.DrawFn, names: tuple[str, ...] = tuple(LAYERS)) -> Case:
    """An image of any size and a layer in eval that looks trained."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    b, c = draw(st.integers(1, 4)), draw(st.sampled_from([8, 12, 20]))
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    layer = LAYERS[draw(st.sampled_from(names))](c, dtype=torch.float64)
    return scale * torch.randn(b, c, h, w, dtype=torch.float64), randomize(layer).eval()


GCA = ("gca", "gca-own")
COORDINATE = (*GCA, "coord")


@given(cases())
def test_shape_and_dtype_are_kept_and_gates_only_damp(case: Case) -> None:
    x, layer = case
    y = layer(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert (y.abs() <= x.abs()).all()
    assert (y * x >= 0).all()


@given(cases())
def test_a_batch_equals_its_items_alone(case: Case) -> None:
    x, layer = case
    torch.testing.assert_close(layer(x), torch.cat([layer(item) for item in x.split(1)]))


@given(cases(COORDINATE), st.data())
def test_permuting_rows_or_columns_permutes_the_output(case: Case, data: st.DataObject) -> None:
    x, layer = case
    for axis in (2, 3):
        order = torch.tensor(data.draw(st.permutations(range(x.shape[axis]))))
        torch.testing.assert_close(layer(x.index_select(axis, order)), layer(x).index_select(axis, order))


@given(cases(GCA))
def test_transposing_the_image_transposes_the_output(case: Case) -> None:
    x, layer = case
    torch.testing.assert_close(layer(x.transpose(2, 3)), layer(x).transpose(2, 3))


@given(cases(GCA))
def test_changing_one_group_changes_only_that_group(case: Case) -> None:
    x, layer = case
    half = x.shape[1] // 2
    changed = torch.cat((x[:, :half] + 1, x[:, half:]), dim=1)
    y, y_changed = layer(x), layer(changed)
    torch.testing.assert_close(y_changed[:, half:], y[:, half:])
    assert not torch.allclose(y_changed[:, :half], y[:, :half])


@given(st.sampled_from([(8, 1), (8, 2), (12, 3), (16, 4)]), st.sampled_from(["avg", "max", "avg+max"]))
def test_shared_and_own_convolutions_agree_where_every_group_owns_the_same(sizes: tuple[int, int], pool: str) -> None:
    channels, groups = sizes
    shared = gca.GroupedCoordinateAttention(channels, groups, pool=pool, dtype=torch.float64).eval()
    own = gca.GroupedCoordinateAttention(channels, groups, pool=pool, share_groups=False, dtype=torch.float64).eval()
    randomize(shared)
    own.load_state_dict(
        {
            name: tensor.repeat(groups, *[1] * (tensor.ndim - 1)) if tensor.is_floating_point() else tensor
            for name, tensor in shared.state_dict().items()
        }
    )
    x = torch.randn(2, channels, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(own(x), shared(x))


@pytest.mark.parametrize("name", ["coord", "cbam", "se"])
def test_the_other_layers_do_mix_all_channels(name: str) -> None:
    build: Callable[..., nn.Module] = LAYERS[name]
    layer = randomize(build(16, dtype=torch.float64)).eval()
    x = torch.randn(1, 16, 5, 5, dtype=torch.float64)
    changed = torch.cat((x[:, :8] + 1, x[:, 8:]), dim=1)
    assert not torch.allclose(layer(changed)[:, 8:], layer(x)[:, 8:])
