"""EAS on a transformers vision-language model: attach a plan, train it, save it, take it off again.

skipper = eas.Skipper(eas.Plan(layers=32, skip=eas.released("llava-scienceqa-12"), pia_rank=256))
with skipper(model):
    model.generate(**inputs)
eas.save(skipper, "adapters")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eas.adapters import PIA, Adapter
from eas.attachment import STATE, Attachment, Means, PromptState
from eas.folding import Affine, affine, fold, linear_of
from eas.plan import Plan
from tenfold import UserError
from tenfold.hosts.structure import decoder_layers, unwrap

KEPT_TARGETS, SKIPPED_TARGETS = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


class Skipper:
    """Skips the attentions of a plan in one model, with an adapter before each that stays.

    Use it as a context, ``with skipper(model): ...``, or with `attach` and `detach`; leaving restores the model
    exactly. Inside, the model takes batches with padding on either side, beams, several turns on one cache, and cached
    or uncached decoding; the cache has one slot for each attention that is left.

    Args:
        plan: what is skipped.
        both: every layer gets both modules, as the search needs: `set_skip` then says which is at work.
        means: what router and global vector average over (`eas.attachment.Attachment`).
        seed: of the weights that the adapters start with.
    """

    def __init__(self, plan: Plan, *, both: bool = False, means: Means = "prompt", seed: int = 0) -> None:
        self.plan, self.both, self.means, self.seed = plan, both, means, seed
        self.adapters: dict[int, Adapter] = {}
        self.pias: dict[int, PIA] = {}
        self.projector: dict[str, nn.Parameter] = {}  # what a tuning made of the host's, by the host's names
        self._aside: list[tuple[nn.Module, str, nn.Parameter]] = []  # the host's own, while it is attached
        self._attachment: Attachment | None = None

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Skipper]:
        """Attach for the duration of a ``with`` block; errors as in `attach`."""
        self.attach(model)
        try:
            yield self
        finally:
            self.detach()

    def build(self, width: int, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        """Make the modules for a host of this width, if they are not there yet."""
        if self.adapters or self.pias:
            found = next(iter((self.adapters or self.pias).values())).width
            if found != width:
                raise UserError(f"adapters of width {found}", "this host", f"width {width}")
            return
        plan = self.plan
        shared: dict[str, Any] = {"groups": plan.groups, "scale": plan.scale, "temperature": plan.temperature}
        shared["dropout"] = plan.dropout
        generator = torch.Generator().manual_seed(self.seed)
        with torch.device("meta"):  # torch's own start would draw from the generator that all share
            for layer in range(plan.layers):
                if plan.adapter_rank and (self.both or layer not in plan.skip):
                    self.adapters[layer] = Adapter(width, plan.adapter_rank, router_bias=False, **shared)
                if self.both or layer in plan.skip:
                    options = {"identity_start": plan.identity_start, "use_global": plan.use_global}
                    self.pias[layer] = PIA(width, plan.pia_rank, **options, **shared)
        if device == "meta":
            return
        for module in self.modules():
            module.to_empty(device="cpu" if device is None else device)
            module.start(generator)
            module.to(dtype=dtype)

    def modules(self) -> list[Adapter]:
        """Adapters and PIAs, layer by layer."""
        numbered = [*self.adapters.items(), *self.pias.items()]
        return [module for _, module in sorted(numbered, key=lambda item: item[0])]

    def parameters(self) -> list[nn.Parameter]:
        """What training moves, beside a projector."""
        return [
            *(parameter for module in self.modules() for parameter in module.parameters()),
            *self.projector.values(),
        ]

    def attach(self, model: nn.Module) -> None:
        """Start skipping.

        Args:
            model: a transformers vision-language model (or language model), possibly under PEFT adapters.

        Raises:
            UserError: the plan is for another number of layers, the host's structure cannot be served (the reason is
                named), or skipper or model are already in use.
        """
        if self._attachment is not None:
            raise UserError("this skipper is already attached", type(self._attachment.model).__name__, "detach() first")
        host = unwrap(model)
        layers = decoder_layers(host)
        gain: Tensor = layers[0].input_layernorm.weight  # type: ignore[union-attr,assignment]
        fresh = not self.modules()
        self.build(gain.numel(), device="meta" if gain.device.type == "meta" else None)
        self._attachment = Attachment(host, self.plan, self.adapters, self.pias, self.means)
        for number, layer in enumerate(layers):  # beside their layer, on its device; new ones in its dtype
            for module in (self.adapters.get(number), self.pias.get(number)):
                if module is not None:
                    place: Tensor = layer.input_layernorm.weight  # type: ignore[union-attr,assignment]
                    module.to(device=place.device, dtype=place.dtype if fresh else None)
                    module.train(layer.training)
        try:
            self._put_projector(host)
        except UserError:
            self.detach()
            raise

    def take_projector(self, model: nn.Module) -> None:
        """Make a copy of the host's projector, to be trained beside the adapters (before `attach`)."""
        module = find_projector(unwrap(model))
        self.projector = {name: nn.Parameter(value.detach().clone()) for name, value in module.named_parameters()}

    def _put_projector(self, host: nn.Module) -> None:
        if not self.projector:
            return
        places = dict(find_projector(host).named_modules())
        for name, parameter in self.projector.items():
            path, _, leaf = name.rpartition(".")
            own = getattr(places.get(path), leaf, None)
            if own is None or own.shape != parameter.shape:
                found = "none" if own is None else list(own.shape)
                raise UserError(f"projector {name} {list(parameter.shape)}", type(host).__name__, f"{found}")
            parameter.data = parameter.data.to(device=own.device)
            self._aside.append((places[path], leaf, own))
            setattr(places[path], leaf, parameter)

    def detach(self) -> None:
        """Stop skipping and restore the model; without effect when not attached."""
        if self._attachment is not None:
            if any(not hasattr(layer.module, "self_attn") for layer in self._attachment.layers):
                raise UserError(
                    "the skipped attentions were dropped", type(self._attachment.model).__name__, "reload it"
                )
            for module, leaf, own in self._aside:
                setattr(module, leaf, own)
            self._aside = []
            self._attachment.detach()
            self._attachment = None

    @property
    def attachment(self) -> Attachment:
        if self._attachment is None:
            raise UserError("this skipper is not attached", None, "with skipper(model): ...")
        return self._attachment

    def host_layers(self) -> Iterator[Any]:
        """The decoder blocks of the host that it is attached to."""
        return (layer.module for layer in self.attachment.layers)

    def set_skip(self, skip: tuple[int, ...]) -> None:
        """Skip these attentions from the next forward on (a skipper made with `both`)."""
        self.attachment.set_skip(skip)

    @contextmanager
    def prompt(self, mask: Tensor) -> Iterator[None]:
        """Say which positions are the prompt, ``[batch, tokens]`` bool; later ones never are.

        Needed where a forward holds more than a prompt and no labels tell them apart: decoding without a cache.
        """
        variable = self.attachment.prompt
        token = variable.set(mask.bool())
        try:
            yield
        finally:
            variable.reset(token)

    def drop_attention(self) -> int:
        """Delete the weights of the skipped attentions for good; the parameters that went. The model cannot be
        restored after that."""
        gone = 0
        for layer in self.attachment.layers:
            if layer.skipped and hasattr(layer.module, "self_attn"):
                gone += sum(parameter.numel() for parameter in layer.module.self_attn.parameters())
                del layer.module.self_attn
        return gone

    def affines(self, cache: Any, row: int = 0) -> dict[int, Affine]:
        """By layer, the affine map that adapter or PIA are for one row of a prompt whose prefill filled `cache`."""
        state: PromptState | None = getattr(cache, STATE, None)
        if state is None or not state.router:
            raise UserError("no prompt in this cache", "folding", "the cache of a prefill while attached")
        maps = {}
        for layer in self.attachment.layers:
            part = layer.pia if layer.skipped else layer.adapter
            if part is not None:
                globe = state.globe.get(layer.number)
                maps[layer.number] = affine(
                    part, state.router[layer.number][row], None if globe is None else globe[row]
                )
        return maps

    @contextmanager
    def folded(self, cache: Any, *, as_released: bool = False) -> Iterator[None]:
        """Decode one prompt with adapters and PIAs folded into the matrices behind them: nothing is left of them.

        Args:
            cache: of the prompt's prefill; one row, or beams of one.
            as_released: with the authors' order of the bias.

        Raises:
            UserError: several prompts in the cache, or a host whose matrices are quantised or under PEFT; another
                prompt's forward meanwhile, from whichever thread.
        """
        maps = self.affines(cache)
        _refuse_rows(getattr(cache, STATE))
        undo: list[tuple[nn.Module, str, nn.Module]] = []
        try:
            with torch.no_grad():
                for layer in self.attachment.layers:
                    if layer.number in maps:
                        undo += self._fold(layer, maps[layer.number], as_released)
            self.attachment.folded = cache
            yield
        finally:
            for block, name, linear in undo:
                setattr(block, name, linear)
            for layer in self.attachment.layers:
                layer.folded = False
            self.attachment.folded = None

    def _fold(self, layer: Any, one: Affine, as_released: bool) -> list[tuple[nn.Module, str, nn.Module]]:
        """Put a layer's affine map into the matrices behind it; what stood there."""
        block = layer.module.mlp if layer.skipped else layer.module.self_attn
        gain = layer.module.post_attention_layernorm.weight if layer.skipped else None
        names = SKIPPED_TARGETS if layer.skipped else KEPT_TARGETS
        found: list[tuple[nn.Module, str, Any]] = [(block, name, getattr(block, name, None)) for name in names]
        for _, name, linear in found:
            if type(linear) is not nn.Linear or not torch.is_floating_point(linear.weight):
                raise UserError(f"{name} of layer {layer.number} cannot be folded", type(linear).__name__, "nn.Linear")
        for _, name, linear in found:
            bias = linear.bias
            setattr(block, name, linear_of(fold(linear.weight, one, bias=bias, gain=gain, as_released=as_released)))
        layer.folded = True
        return found


def find_projector(host: nn.Module) -> nn.Module:
    """The module between vision tower and decoder. Raises UserError where the host has none of that name."""
    for name, module in host.named_modules():
        if name.rpartition(".")[2] == "multi_modal_projector":
            return module
    raise UserError("no multi_modal_projector", type(host).__name__, "a LLaVA host: only its projector is tuned")


def _refuse_rows(state: PromptState) -> None:
    for rows in (*state.router.values(), *state.globe.values()):
        if rows.shape[0] > 1 and not bool((rows == rows[:1]).all()):
            raise UserError(
                f"{rows.shape[0]} different prompts in this cache", "folding", "one: a fold is one prompt's"
            )
