"""The training loss of any causal LM: the cross-entropy, and apart from it what a model adds to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from mypt.checkpoints.probes import probe_tokens

LENGTH = 8  # tokens of each of two rows on which a loss is tried
SAME = 1e-5  # relative difference up to which a loss is the cross-entropy: small coefficients add a thousandth
ROUNDING = 1e-3  # that of losses computed in 16 bits
BALANCE_ROUNDING = 2e-2  # of balancing losses in 16 bits; for another number of experts per token they differ by more


def training_loss(model: PreTrainedModel, accepts_items: bool) -> TrainingLoss | None:
    """The loss that `model` has to be trained with: None if its own loss is the cross-entropy, found out by trying.

    Args:
        model: any causal LM.
        accepts_items: whether Trainer found that its loss takes `num_items_in_batch`.

    A mixture of experts whose config has `output_router_logits` adds `router_aux_loss_coef` times a load-balancing
    loss. Anything else that is added is left out, and `TrainingLoss.note` reports it.
    """
    was_training = model.training
    model.train()  # some add to their loss in training alone
    ids = probe_tokens(model, rows=3, length=LENGTH)
    ids, labels = ids[:2], ids[1:].clone()
    labels[0, :3] = -100  # rows weigh by their targets
    with torch.no_grad(), torch.random.fork_rng(devices=[ids.device] if ids.is_cuda else []):
        result = _try(model, ids, labels) if accepts_items else TrainingLoss()
    model.train(was_training)
    return result


def _try(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> TrainingLoss | None:
    items = 2 * ids.numel()  # not the number of targets: a loss that ignores it is found out
    try:
        with_labels = model(input_ids=ids, labels=ids, shift_labels=labels, num_items_in_batch=items, use_cache=False)
    except Exception:  # its loss takes no targets of ours
        return TrainingLoss()
    entropy = cross_entropy(with_labels.logits, labels) / items
    config = model.config.get_text_config(decoder=True)
    coefficient, routers = getattr(config, "router_aux_loss_coef", None), with_labels.get("router_logits")
    if coefficient and routers is not None and with_labels.get("aux_loss") is not None:
        # Before anything is compared with the small sum of both, so that a resume decides as the start did.
        rest = (with_labels.loss - coefficient * with_labels.aux_loss, entropy, ROUNDING)
        row = model(input_ids=ids[:1], labels=ids[:1], use_cache=False)
        losses = [TrainingLoss(coefficient, top_k) for top_k in range(1, routers[0].shape[-1] + 1)]
        same = [_close(one.balance(row.router_logits, 1)[0], row.aux_loss, BALANCE_ROUNDING) for one in losses]
        if any(same) and _close(*rest):
            return losses[same.index(True)]
    elif _close(with_labels.loss, entropy, SAME):
        return None
    elif _close(with_labels.loss, entropy, ROUNDING):
        return TrainingLoss()
    return TrainingLoss(
        note=f"the loss of {type(model).__name__} is not the cross-entropy ({with_labels.loss.item():.4g} against "
        f"{entropy.item():.4g} on a few tokens); MyPT trains on the cross-entropy alone and leaves out the rest"
    )


class TrainingLoss:
    """Trainer's `compute_loss_func`: the cross-entropy from the logits, and a load-balancing loss of experts.

    Experts are balanced within each row (window), as DeepSeek-V3 does (2412.19437, section 2.1.2), with Switch
    Transformer's loss (2101.03961, equation 4), and rows weigh by their targets: so the loss of a step does not depend
    on how its rows are spread over micro-batches and processes.

    Args:
        coefficient: what the balancing loss is multiplied with; 0 without experts.
        top_k: experts per token.
        note: a line for the user, or "".
    """

    def __init__(self, coefficient: float = 0.0, top_k: int = 0, note: str = ""):
        self.coefficient, self.top_k, self.note = coefficient, top_k, note
        self._share: torch.Tensor | None = None  # of the last loss that is not cross-entropy
        self._added: list[torch.Tensor] = []

    def __call__(
        self, outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """labels: int64 (rows, T), the token after each position, -100 where there is no target."""
        targets = labels.ne(-100).sum(dim=1)
        items = targets.sum() if num_items_in_batch is None else num_items_in_batch
        loss = cross_entropy(outputs.logits, labels) / items
        if not self.coefficient:
            return loss
        balance = self.balance(outputs.router_logits, len(labels)).to(loss.device)
        added = self.coefficient * (balance * targets).sum() / items
        self._share = (added / (loss + added)).detach()
        return loss + added

    def cross_entropy_of(self, loss: torch.Tensor) -> torch.Tensor:
        """The cross-entropy in a loss that was just computed, scaled as Trainer has scaled it; detached scalars."""
        if not self.coefficient:
            return loss
        self._added.append(loss * self._share)
        return loss - self._added[-1]

    def take_added(self) -> torch.Tensor:
        """Mean of what was added to the cross-entropy in each micro-batch since the last call; a scalar."""
        added, self._added = self._added, []
        return torch.stack(added).mean() if added else torch.zeros(())

    def balance(self, router_logits: tuple[torch.Tensor, ...], rows: int) -> torch.Tensor:
        """Load-balancing loss of each row, float32 (rows,), from the routers' logits of each layer (rows * T, experts).

        experts x sum over experts of (share of the choices) x (mean probability), over the row's tokens of all layers.
        """
        experts = router_logits[0].shape[-1]
        logits = [layer.view(rows, -1, experts).to(router_logits[0].device) for layer in router_logits]
        probabilities = torch.cat(logits, dim=1).float().softmax(dim=-1)  # (rows, layers * T, experts)
        chosen = torch.zeros_like(probabilities).scatter_(-1, probabilities.topk(self.top_k, dim=-1).indices, 1.0)
        return experts * (chosen.mean(dim=1) * probabilities.mean(dim=1)).sum(dim=-1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed over targets, in float32; logits (rows, T, vocabulary), labels (rows, T), -100 where there is none."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device), reduction="sum")


def next_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The target of each position, int64 (rows, T): `shift_labels`, or HF's `labels` moved by one."""
    if "shift_labels" in batch:
        return batch["shift_labels"]
    return F.pad(batch["labels"][:, 1:], (0, 1), value=-100)


def _close(left: torch.Tensor, right: torch.Tensor, relative: float) -> bool:
    return bool((left - right).abs() <= relative * right.abs())
