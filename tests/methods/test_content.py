"""The methods that look at the images, in a fit: what holds for both."""
import pytest
import torch
import torch.nn.functional as F
from test_family import RootLoss, by_hand, classes, fit, learner, shares_seen

from fastmix.all import GuidedMixUp, MixChoice, MixUp, SaliencyMix

both = pytest.mark.parametrize('cls', [SaliencyMix, GuidedMixUp])


@both
def test_soft_labels_by_hand(cls):
    for row in fit([cls(seed=1, p=1.)], y=F.one_hot(classes, 3).float())[1]:
        soft = torch.stack([shares_seen(row['seen'])[:, classes == c].sum(1) for c in range(3)], 1)
        torch.testing.assert_close(row['y'], soft)
        torch.testing.assert_close(row['loss'], -(soft*row['out'].log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize('make', [SaliencyMix, lambda **kwargs: SaliencyMix(per='sample', **kwargs), GuidedMixUp], ids=['SaliencyMix', 'SaliencyMix per sample', 'GuidedMixUp'])
@pytest.mark.parametrize('loss', [RootLoss(), lambda pred, y: F.cross_entropy(pred, y)], ids=['root', 'closure'])
@pytest.mark.filterwarnings('error:.*every batch gets one λ')
def test_a_loss_that_is_one_number_is_refused_by_name(make, loss):
    mixer = make(seed=1, p=1.)
    with pytest.raises(ValueError, match=f'{type(mixer).__name__} weighs the labels of each sample'): learner(mixer, loss).fit(1)


@both
def test_half_of_the_batches_and_beside_another(cls):
    rows = fit([cls(seed=3)], epochs=20)[1]
    assert 10 < sum(row['part'] is None for row in rows) < 30
    rows = fit([MixChoice(cls(p=1.), MixUp(), seed=2)], epochs=6)[1]
    assert {type(row['part']) for row in rows} == {cls, MixUp}
    for row in rows: torch.testing.assert_close(row['loss'], by_hand(row))
