"""Attention in pieces, and the choice of its operator.

xformers has no CPU operator: a stand-in with its signature and axes takes its place, computed by torch.
"""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from recapture.engine.config import RunConfig, check
from recapture.engine.errors import InputError
from recapture.engine.models import adapters
from recapture.engine.models.attention import key, require, set_attention
from recapture.engine.models.temporal_bypass import temporal_bypass
from recapture.kernels.attention import LIMIT, chunked

from ..small_models import small_unet


def qkv(n: int, heads: int, tokens: int = 5, context: int = 7, width: int = 8) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, heads, length, width, generator=g) for length in (tokens, context, context)]


def counted(calls: list[int]):
    def attend(q, k, v, **options):
        assert len(q) == len(k) == len(v)
        calls.append(len(q) * q.shape[1])
        return F.scaled_dot_product_attention(q, k, v, **options)

    return attend


@pytest.mark.parametrize(
    ("n", "heads", "limit", "calls"),
    [(6, 2, 100, 1), (6, 2, 12, 1), (7, 2, 12, 2), (7, 3, 8, 4), (5, 4, 4, 5), (1, 4, 4, 1), (0, 2, 4, 1)],
)
def test_pieces_stay_under_the_limit_and_give_the_same(n, heads, limit, calls):
    q, k, v = qkv(n, heads)
    made: list[int] = []
    whole = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(chunked(counted(made), q, k, v, limit=limit), whole, rtol=1e-6, atol=1e-6)
    assert len(made) == calls
    assert all(size <= limit for size in made)


def test_the_size_that_overruns_the_grid():
    """SVD's widest temporal layers at 576x1024 with guidance: 2 x 9216 places of 5 heads over 14 frames."""
    q, k, v = qkv(2 * 72 * 128, 5, tokens=14, context=14, width=4)
    made: list[int] = []
    assert len(q) * 5 == 92_160 > LIMIT
    assert torch.allclose(
        chunked(counted(made), q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-6, atol=1e-6
    )
    assert made == [46_080, 46_080]


def test_masks_are_cut_with_their_rows_and_gradients_pass():
    q, k, v = (x.double().requires_grad_() for x in qkv(5, 2))
    mask = torch.rand(5, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[..., 0] = True
    shared = torch.zeros(5, 7, dtype=torch.float64)  # [L, S], as long as N: no mask a batch entry, not to be cut
    for given in (mask, shared):
        whole = F.scaled_dot_product_attention(q, k, v, attn_mask=given)
        parts = chunked(counted([]), q, k, v, limit=4, attn_mask=given)
        assert torch.allclose(parts, whole, rtol=1e-12)
        for a, b in zip(
            torch.autograd.grad(parts.square().sum(), (q, k, v)),
            torch.autograd.grad(whole.square().sum(), (q, k, v)),
            strict=True,
        ):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_more_heads_than_a_call_may_have():
    with pytest.raises(ValueError, match="8 heads"):
        chunked(F.scaled_dot_product_attention, *qkv(1, 8), limit=7)


@pytest.fixture
def stand_in(monkeypatch) -> list[int]:
    """A module in xformers' place; the list gets batch x heads of each call."""
    calls: list[int] = []

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        batch, _, heads, _ = query.shape  # [N, L, H, D]
        calls.append(batch * heads)
        mixed = F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (query, key, value)), attn_mask=attn_bias, dropout_p=p, scale=scale
        )
        return mixed.transpose(1, 2).contiguous()

    package, operators = ModuleType("xformers"), ModuleType("xformers.ops")
    operators.memory_efficient_attention = memory_efficient_attention  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", operators)
    return calls


def test_the_unet_computes_the_same_with_its_adapters(stand_in, monkeypatch):
    torch.manual_seed(0)
    unet = small_unet().eval()
    adapters.inject(unet, 2)
    for name, parameter in unet.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapters.train_only(unet, ["temporal"])
    g = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(2, 3, 8, 8, 8, generator=g),
        torch.ones(2),
        torch.randn(2, 1, 16, generator=g),
        torch.ones(2, 3),
    )
    trained = list(adapters.adapter_parameters(unet, "temporal").values())

    def outputs() -> list[torch.Tensor]:
        output = unet(*inputs).sample
        with temporal_bypass(unet):
            spatial = unet(*inputs).sample
        with adapters.enabled(unet, []):
            bare = unet(*inputs).sample
        gradient = torch.autograd.grad(output.square().mean(), trained, allow_unused=True)
        return [output, spatial, bare, *(g for g in gradient if g is not None)]

    expected = outputs()
    monkeypatch.setattr("recapture.kernels.attention.chunked.__kwdefaults__", {"limit": 100})
    set_attention(unet, "xformers")
    given = outputs()
    assert stand_in
    assert max(stand_in) <= 100 < 2 * 64 * 2  # batch x places x heads of the widest temporal layer
    assert len(given) == len(expected)
    for a, b in zip(given, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    calls = len(stand_in)
    set_attention(unet, "sdpa")
    for a, b in zip(outputs(), expected, strict=True):
        assert torch.equal(a, b)
    assert len(stand_in) == calls


def test_refused_by_name_without_a_gpu_or_the_package(monkeypatch):
    require("sdpa", torch.device("cpu"))
    with pytest.raises(InputError, match="no operator for cpu") as refused:
        require("xformers", torch.device("cpu"))
    assert refused.value.param == "attention"
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(InputError, match=r"pip install 'recapture\[xformers\]'"):
        require("xformers", torch.device("cuda"))
    with pytest.raises(InputError, match="sdpa, xformers"):
        check(RunConfig(attention="flash"))  # pyright: ignore[reportArgumentType]


def test_the_default_leaves_the_keys_as_they_were():
    assert key("sdpa") == {}
    assert key("xformers") == {"attention": "xformers"}
    assert RunConfig.from_json({"model": "tiny"}).attention == "sdpa"  # a config.json from before the option
    assert RunConfig.from_json(RunConfig(attention="xformers").to_json()).attention == "xformers"


@pytest.mark.gpu
def test_xformers_itself_equals_sdpa():
    pytest.importorskip("xformers")
    from recapture.engine.models.attention import xformers_attention

    q, k, v = (x.half().cuda() for x in qkv(2 * 72 * 128, 5, tokens=14, context=14, width=64))
    given = chunked(xformers_attention, q, k, v, scale=64**-0.5)
    assert torch.allclose(given, F.scaled_dot_product_attention(q, k, v), rtol=2e-3, atol=2e-3)
