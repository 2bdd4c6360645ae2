import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dtrain.train.loss import against, against_labels


def test_against_labels_is_the_sum_of_cross_entropies() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    assert against_labels(torch.empty(5), logits, labels) == cross_entropy(logits, labels, reduction="sum")


class Doubled(nn.Module):
    """A teacher whose logits are known; it must be in evaluation mode."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return 2 * images


def test_whoever_says_what_the_teacher_says_loses_nothing_and_learns_nothing() -> None:
    images = torch.randn(4, 10)
    logits = (2 * images).requires_grad_()
    loss = against(Doubled(), 2.0)(images, logits, torch.zeros(4))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_the_difference_of_softened_answers_times_the_temperature(temperature: float) -> None:
    images, logits = torch.randn(4, 10), torch.randn(4, 10, requires_grad=True)
    against(Doubled(), temperature)(images, logits, torch.zeros(4)).backward()
    wanted = temperature * ((logits / temperature).softmax(1) - (2 * images / temperature).softmax(1))
    torch.testing.assert_close(logits.grad, wanted.detach(), rtol=1e-4, atol=1e-5)
