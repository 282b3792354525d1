"""Every row of the README's table: it holds here, and it does not hold for fastai's own callbacks."""
from pathlib import Path
from subprocess import CalledProcessError

import fastai.callback.mixup as fastais
import pytest

import fastmix.all as ours
from promises import promises

checks = pytest.mark.parametrize('check', [check for check, _ in promises.values()], ids=lambda check: check.__name__)


@checks
def test_holds_here(check): check(ours.MixUp, ours.CutMix)


@checks
def test_fails_in_fastai(check):
    with pytest.raises((AssertionError, RuntimeError, IndexError, ValueError, AttributeError, CalledProcessError)): check(fastais.MixUp, fastais.CutMix)


def test_readme_lists_them():
    readme = (Path(__file__).parent.parent/'README.md').read_text()
    for text, (_, fastai) in promises.items(): assert f'| {text} | {fastai} |' in readme
