"""The two linear modules of EAS: the adapter before a kept attention and PIA in the place of a removed one.

Both are low-rank and have no non-linearity, so that for a given sample each is an affine map ``u -> M u + b`` which
folds into the matrices behind it (`eas.folding`). A router mixes two up-projections B and D once a sample; PIA adds
one global vector g, the mean of a second down-projection over the prompt, which is what is left of token mixing:

    adapter   a_j = A u_j + a                   Adp(u)_j = u_j + s [ w_0 (B a_j + b_B) + w_1 (D a_j + b_D) ]
    PIA       h_j = (C u_j + c + g) / 2         PIA(u)_j = u_j + s [ w_0 (B h_j + b_B) + w_1 (D h_j + b_D) ]
    router    w = softmax((W_r u_mean + b_r) / t)          global vector   g = A u_mean + a

``u_mean`` is a mean over the prompt, never over padding or answers unless asked for: g is linear in u, so one
product with the mean stands for one product with every token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXPERTS = 2


class GroupedLinear(nn.Module):
    """An up-projection in groups: group k of the outputs reads group k of the inputs (a 1x1 convolution)."""

    def __init__(self, rank: int, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(width, rank // groups))
        self.bias = nn.Parameter(torch.zeros(width))

    def dense(self) -> Tensor:
        """The same map as one matrix, ``[width, rank]``, zero between groups."""
        return torch.block_diag(*self.weight.chunk(self.groups))


class Adapter(nn.Module):
    """The adapter on the input of a kept attention.

    Args:
        width: d, of the tokens.
        rank: h, of the hidden vector; a multiple of `groups`.
        groups: of the up-projections B and D.
        scale: s.
        temperature: t of the router; 10 keeps both experts near one half.
        dropout: on the hidden vector.
        router_bias: the router has a bias b_r (the LLaVA host's adapter has none, its PIA has one).
    """

    def __init__(
        self,
        width: int,
        rank: int,
        *,
        groups: int = 2,
        scale: float = 1.0,
        temperature: float = 10.0,
        dropout: float = 0.1,
        router_bias: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.rank, self.groups = width, rank, groups
        self.scale, self.temperature, self.dropout = scale, temperature, dropout
        self.A = nn.Linear(width, rank)
        self.B = GroupedLinear(rank, width, groups)
        self.D = GroupedLinear(rank, width, groups)
        self.router = nn.Linear(width, EXPERTS, bias=router_bias)

    def start(self, generator: torch.Generator) -> None:
        """Draw the weights of the start: xavier for the down-projections, zero for B and D, so that Adp(u) = u."""
        nn.init.xavier_uniform_(self.A.weight, generator=generator)
        for module in (self.A, self.B, self.D):
            nn.init.zeros_(module.bias)
        for module in (self.B, self.D):
            nn.init.zeros_(module.weight)
        bound = self.width**-0.5  # torch's own start of a Linear
        for parameter in self.router.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def route(self, mean: Tensor) -> Tensor:
        """Expert weights w of every sample, ``[batch, 2]`` float32, from the mean token ``[batch, width]``."""
        return F.softmax(self.router(mean.to(self.router.weight.dtype)).float() / self.temperature, dim=-1)

    def forward(self, tokens: Tensor, router: Tensor) -> Tensor:
        """Adp(u): ``tokens [batch, tokens, width]`` and ``router [batch, 2]`` give ``[batch, tokens, width]``."""
        hidden = self.A(tokens.to(self.A.weight.dtype))
        return self._rise(tokens, hidden, router)

    def _rise(self, tokens: Tensor, hidden: Tensor, router: Tensor) -> Tensor:
        hidden = F.dropout(hidden, self.dropout, self.training)
        batch, length, rank = hidden.shape
        router = router.to(hidden.dtype)
        # Both experts and all groups in one batched product: the router scales what goes in, not what comes out.
        mixed = router[:, None, :, None] * hidden[:, :, None, :]  # [batch, tokens, 2, rank]
        mixed = mixed.view(batch, length, EXPERTS, self.groups, rank // self.groups).transpose(2, 3)
        mixed = mixed.reshape(batch * length, self.groups, -1).transpose(0, 1)  # [groups, batch * tokens, 2 h / groups]
        experts = torch.cat((self.B.weight, self.D.weight), dim=1).view(self.groups, self.width // self.groups, -1)
        risen = torch.bmm(mixed, experts.transpose(1, 2)).transpose(0, 1).reshape(batch, length, self.width)
        bias = router @ torch.stack((self.B.bias, self.D.bias))  # [batch, width]
        return tokens + (self.scale * (risen + bias[:, None])).to(tokens.dtype)


class PIA(Adapter):
    """The Propagation-of-Information Adapter, in the place of a removed attention.

    Args:
        identity_start: B and D start at zero, so that PIA(u) = u. The LLaVA host draws them (xavier) instead.
        use_global: False leaves g out, and with it all that tokens learn of each other (the paper's ablation).
    """

    def __init__(
        self, width: int, rank: int, *, identity_start: bool = False, use_global: bool = True, **options: float
    ) -> None:
        super().__init__(width, rank, **options)  # type: ignore[arg-type]
        self.identity_start, self.use_global = identity_start, use_global
        self.C = nn.Linear(width, rank)

    def start(self, generator: torch.Generator) -> None:
        super().start(generator)
        nn.init.xavier_uniform_(self.C.weight, generator=generator)
        nn.init.zeros_(self.C.bias)
        if not self.identity_start:
            for module in (self.B, self.D):
                nn.init.xavier_uniform_(module.weight, generator=generator)

    def globe(self, mean: Tensor) -> Tensor:
        """The global vector g of every sample, ``[batch, rank]``, from the mean token ``[batch, width]``."""
        return self.A(mean.to(self.A.weight.dtype))

    def forward(self, tokens: Tensor, router: Tensor, globe: Tensor | None = None) -> Tensor:
        """PIA(u): as `Adapter.forward`, with ``globe [batch, rank]``."""
        hidden = self.C(tokens.to(self.C.weight.dtype))
        if self.use_global and globe is not None:
            hidden = hidden + globe[:, None].to(hidden.dtype)
        return self._rise(tokens, 0.5 * hidden, router)


def mean_token(tokens: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean ``[batch, width]`` float32 of ``tokens [batch, tokens, width]``.

    Args:
        weights: ``[batch, tokens]`` float32, of sum one in every row.
    """
    return torch.bmm(weights[:, None], tokens.float())[:, 0]
