"""What a clipped, noised step costs for heads of several layers: ours against Opacus's own loops, on the same data."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping, DPTensorFastGradientClipping
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.mechanism import clipped_sum, noisy_gradient
from common.grafting import Layout
from common.heads import build_head
from common.privacy.noise import SeededRandomness
from common.privacy.plan import PrivacyTerms
from common.tasks import classification_loss

UNITS, REPEATS, CLASSES = 32, 3, 10
Step = Callable[[], None]


def main() -> None:
    """Print seconds a step and the ratio to Opacus's per-sample gradients."""
    titles = ("head", "trained", "ours", "without noise", "Opacus", "its ghost clipping", "vmap", "ours / Opacus")
    table = Table(*titles, title=f"processor seconds for a step of {UNITS} records on one thread, best of {REPEATS}")
    torch.set_num_threads(1)
    table.add_row("MLP of width 64, d = 768", *_row(build_head("mlp", 768, CLASSES, hidden=64), ((768,),)))
    for name, make in {"resnet18 layer4, 64 px": _resnet, "BERT block, d = 384, T = 128": _bert}.items():
        upper, layout = make()
        for train in ("all", "adapters"):
            head = build_head("upper", layout, CLASSES, upper=upper, train=train)
            table.add_row(f"{name}, {train}", *_row(head, layout))
    Console(width=140).print(table)


def _row(head: nn.Module, layout: Layout) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(UNITS, sum(int(torch.tensor(shape).prod()) for shape in layout), generator=generator)
    if len(layout) == 2:
        features[:, -layout[1][0] :] = 1.0
    targets = torch.randint(0, CLASSES, (UNITS,), generator=generator)
    makers = (_ours, _unnoised, _opacus, _ghost, _vmap)
    seconds = [_best(make(head, features, targets)) for make in makers]
    trained = sum(value.numel() for value in head.parameters() if value.requires_grad)
    return [f"{trained:,}", *[f"{value:.2g}" for value in seconds], f"{seconds[0] / seconds[2]:.2f}"]


def _best(step: Step) -> float:
    step()  # what happens once a head does not count
    found = []
    for _ in range(REPEATS):
        began = time.process_time()  # one thread: what others do on this machine does not count
        step()
        found.append(time.process_time() - began)
    return min(found)


def _ours(head: nn.Module, features: Tensor, targets: Tensor) -> Step:
    plan = PrivacyTerms("record", "local", 1.0, 100, 1, 1.0, 1.0, 1e-5).for_node(UNITS)
    randomness = SeededRandomness(0, "benchmark", 1, "train")
    parameters = dict(head.named_parameters())

    def step() -> None:
        clipped = clipped_sum(head, classification_loss, features, targets, 1.0)
        with torch.no_grad():
            for name, value in noisy_gradient(clipped, plan, randomness).items():
                parameters[name].sub_(1e-3 * value)

    return step


def _unnoised(head: nn.Module, features: Tensor, targets: Tensor) -> Step:
    def step() -> None:
        clipped_sum(head, classification_loss, features, targets, 1.0)

    return step


def _trainable(head: nn.Module) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy in the training mode without which Opacus's hooks do nothing; its dropout stays off."""
    twin = copy.deepcopy(head)
    for module in twin.modules():
        module.training = not isinstance(module, nn.Dropout)
    return twin, [value for value in twin.parameters() if value.requires_grad]


def _opacus(head: nn.Module, features: Tensor, targets: Tensor) -> Step:
    twin, trained = _trainable(head)
    module = GradSampleModule(twin, loss_reduction="sum")
    options: Any = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": UNITS}
    optimizer = DPOptimizer(torch.optim.SGD(trained, lr=1e-3), **options, loss_reduction="sum")

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(classification_loss(module(features.clone().requires_grad_()), targets).sum())
        optimizer.step()

    return step


def _ghost(head: nn.Module, features: Tensor, targets: Tensor) -> Step:
    twin, trained = _trainable(head)
    module = GradSampleModuleFastGradientClipping(twin, loss_reduction="sum", max_grad_norm=1.0)
    options: Any = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": UNITS}
    optimizer = DPOptimizerFastGradientClipping(torch.optim.SGD(trained, lr=1e-3), **options, loss_reduction="sum")
    criterion = DPLossFastGradientClipping(module, optimizer, nn.CrossEntropyLoss(reduction="sum"), "sum")

    def step() -> None:
        optimizer.zero_grad()
        loss: DPTensorFastGradientClipping = criterion(module(features.clone().requires_grad_()), targets)
        loss.backward()
        optimizer.step()

    return step


def _vmap(head: nn.Module, features: Tensor, targets: Tensor) -> Step:
    """Per-sample gradients by ``torch.func``, eight units at a time, clipped and summed."""
    trained = {name: value.detach() for name, value in head.named_parameters() if value.requires_grad}

    def loss(parameters: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        logits: Tensor = functional_call(head, parameters, (row[None],))
        return classification_loss(logits, target[None]).sum()

    def step() -> None:
        for part, aims in zip(torch.split(features, 8), torch.split(targets, 8), strict=True):
            gradients = vmap(grad(loss), (None, 0, 0))(trained, part, aims)
            norms = torch.stack([value.flatten(1).norm(dim=1) for value in gradients.values()]).norm(dim=0)
            factors = (1.0 / norms).clamp(max=1.0)
            for value in gradients.values():
                factors @ value.flatten(1)

    return step


def _resnet() -> tuple[dict[str, nn.Module], Layout]:
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet18().eval()
    return {"layer4": network.layer4, "pool": nn.Sequential(network.avgpool, nn.Flatten())}, ((256, 4, 4),)


def _bert() -> tuple[dict[str, nn.Module], Layout]:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = BertLayer(config).eval()  # type: ignore[no-untyped-call]  # transformers' own
    return {"layer": _OverTokens(layer), "pool": _FirstToken()}, ((128, 384), (128,))


class _OverTokens(nn.Module):
    """A BERT block on states and mask."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, passed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """States (N, T, d) and mask (N, T), and the same again."""
        states, mask = passed
        hidden = torch.zeros_like(mask).masked_fill(mask == 0, torch.finfo(mask.dtype).min)[:, None, None, :]
        result = self.layer(states, attention_mask=hidden)
        return (result[0] if isinstance(result, tuple) else result), mask


class _FirstToken(nn.Module):
    """The pooling stage."""

    def forward(self, passed: tuple[Tensor, Tensor]) -> Tensor:
        """States (N, T, d) and mask -> (N, d)."""
        return passed[0][:, 0]
