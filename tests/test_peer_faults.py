"""The checks behind the page about faults in other libraries: what they find, and that the stored table is theirs."""
import torch

from bench import report
from bench.faults import COLUMNS, FILE, answer, checks, installed, labels_off, run
from fastmix.all import Batch, CutMix, MixUp, mix_rng

verdicts = {'fine', 'wrong', 'refused', 'in place'}


def ours(mixer, wrong=lambda lam: lam):
    "A draw of fastmix's, whose labels count by `wrong` of λ"
    rng = mix_rng(0)

    def draw(x, y):
        mix = mixer.draw_mix(Batch((x,), (y,)), rng)
        lam = wrong(mix.lam.expand(len(x)))[:, None]
        hot = torch.eye(len(x))[y]
        return mix(x), lam*hot + (1-lam)*hot[mix.partner]
    return draw


def test_labels_that_do_not_fit_are_found():
    for mixer in MixUp(1.), CutMix(), CutMix(per='sample'): assert labels_off(ours(mixer)) < 1e-5
    assert labels_off(ours(CutMix(), lambda lam: 1-lam)) > .3
    assert labels_off(ours(CutMix(), lambda lam: lam - .01)) > .005


def test_only_foreseen_errors_are_answers():
    assert answer(lambda: 1/0, ZeroDivisionError) == ('refused', 'ZeroDivisionError: division by zero')
    assert answer(lambda: None, ZeroDivisionError) == ('fine', 'yes')
    try: answer(lambda: 1/0, ValueError)
    except ZeroDivisionError: return
    raise AssertionError('an unforeseen error was taken for an answer')


def test_the_stored_table_is_that_of_the_checks():
    table = report.read(FILE)
    assert list(table.columns) == COLUMNS and set(table.verdict) <= verdicts
    assert set(zip(table.library, table.call, table.question)) == {(o.library, o.call, o.question) for o in checks}
    assert len(table) == len(checks) and table.version.ne('').all() and table.seen.ne('').all()


def test_they_run_where_the_library_is_installed():
    table = run()
    assert set(table.library) == {o.library for o in checks if installed(o.library)} >= {'torchvision'}
    assert set(table.verdict) <= verdicts
