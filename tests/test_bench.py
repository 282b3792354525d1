"""The benchmark runs, and measures what it says. Its figures are for `make bench`: a test says nothing about speed."""
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from bench import gpu, losses, measure, memory, peers, report, run, steps
from fastmix.all import Blend, CutMix, MixUp, Paste, all_mixers


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "A quick run"
    folder = tmp_path_factory.mktemp('bench')
    run.main(['--quick', '--out', str(folder), '--page', str(folder/'page.csv')])
    assert (folder/'page.csv').read_text() == (folder/'speed.csv').read_text()
    assert (folder/'speed.png').stat().st_size > 10_000
    return report.read(folder/'speed.csv')


def test_every_section_is_there(table):
    assert list(table.columns) == run.COLUMNS
    expected = {'machine', 'version', 'mixing', 'methods', 'arguments', 'loss', 'step', 'python', 'size', 'memory'} | ({'loss memory'} if memory.available() else set())
    assert set(table.section) == expected
    assert {'cores', 'threads'} <= set(report.settings(table, 'machine')) and report.settings(table, 'version')['torch'] == torch.__version__.split('+')[0]


def test_every_figure_is_one(table):
    for section in set(table.section) - {'machine', 'version'}:
        rows = report.figures(table, section)
        assert np.isfinite(rows.value).all() and (section == 'python' or (rows.value >= 0).all())
        if 'memory' not in section: assert (rows.ms > 0).all() and np.isfinite(rows.load).all()


def test_every_way_is_measured_or_says_why_not(table):
    for case in report.cases(table, 'mixing'):
        rows = table[(table.section == 'mixing') & (table.case == case)]
        assert set(rows.library) == {'torch', *peers.LIBRARIES}
        assert ((rows.value == '') == (rows.note != '')).all()
        assert set(rows[rows.note == 'not installed'].library) == set(peers.missing)
        ours = report.figures(table, 'mixing', case).query('library == "fastmix"')
        assert set(zip(ours.method, ours.per, ours.kind)) == {(m, p, k) for m in peers.ALPHA for p in ('batch', 'sample') for k in ('call', 'callback')}


def test_every_method_is_measured_and_its_cost_said(table):
    rows = report.figures(table, 'methods').query("kind == 'call'")
    inside = {'MixChoice', 'ManifoldMixUp'}
    assert set(rows.method) == {cls.__name__ for cls in all_mixers.values()} - inside
    for method in set(rows.method): assert 'times as long as copying them, with one' in report.cost(method, table) and ' ms ' in report.cost(method, table)
    assert "hasn't been measured" in report.cost('ManifoldMixUp', table)
    assert len(report.methods_table(table)) == len(set(rows.method))


def test_arguments_are_measured_beside_those_that_have_them(table):
    rows = report.figures(table, 'arguments')
    assert not (table[table.section == 'arguments'].note != '').any() and (rows.library == 'torch').sum() == 2
    mine = rows[rows.library == 'fastmix']
    assert set(zip(mine.method, mine.kind)) == {*(('MixUp', name) for name in ('k', 'source', 'partner')), ('CutMix', 'sides'), ('CopyPaste', 'share')}
    assert all(set(part.per) == {'batch', 'sample'} for _, part in mine.groupby(['method', 'kind']))
    assert set(rows.library) - {'fastmix', 'torch'} == {'timm', 'kornia'} - set(peers.missing)
    assert len(report.arguments_table(table)) == len(rows) - 2 and len(report.aims(table).query("what.str.contains(' beside ')")) == 4 + len(list(report.argument_peers(table)))
    for method in set(mine.method): assert all(f"`{name}` " in report.cost(method, table) for name in mine[mine.method == method]['name'])
    assert 'Drawing and masks included' in report.cost('CopyPaste', table) and 'in copies' not in report.cost('FMix', table)


def test_who_has_the_same_argument_is_compared(table):
    rows = table.copy()
    mine = rows['name'] == "CopyPaste(share=0.5, per='sample')"
    rows.loc[mine, ['value', 'spread', 'rounds']] = '2', '.01', '100'
    peer = {**rows[mine].iloc[0], 'library': 'kornia', 'name': 'theirs', 'value': '5'}
    rows = pd.concat([rows[rows.library != 'kornia'], pd.DataFrame([peer])])
    (own, best), = [pair for pair in report.argument_peers(rows) if pair[0].method == 'CopyPaste']
    assert (own.value, best.value, report.who(own, best)) == (2, 5, 'fastmix') and report.who(own.replace(2., 9.), best) == 'kornia'
    assert "kornia `theirs` 5.00" in report.cost('CopyPaste', rows)
    line = report.aims(rows).set_index('what').loc["the callback of CopyPaste(share=0.5, per='sample') beside kornia"]
    assert (line.measured, line.met) == ('2.00, theirs 5.00', 'yes')


def test_masks_have_areas():
    y = peers.masks(4, (224, 224))
    assert y.shape == (4, 224, 224) and set(y.unique().tolist()) == {0, 1, 2, 3}
    assert (y[:, 1:] != y[:, :-1]).float().mean() < .06 and peers.masks(2, (3, 5)).shape == (2, 3, 5)


@pytest.mark.parametrize('offers', [peers.arguments, peers.with_masks])
def test_arguments_mix(offers):
    x, y = peers.numbered((6, 3, 12, 12), 'float32', 'contiguous')
    if offers is peers.with_masks: y = peers.masks(6, (12, 12))
    assert list(offers(x, y)) and peers.refusals(x, y, offers) == {}


@pytest.mark.parametrize('name', [name for name in peers.LIBRARIES if name != 'fastmix'])
def test_peers_mix(name):
    if name in peers.missing: pytest.skip(f'{name} is not installed: `make bench` has it')
    x, y = peers.numbered((6, 3, 12, 12), 'float32', 'contiguous')
    ways = list(getattr(peers, name)(x, y))
    assert ways
    for way in ways:
        before = x.clone()
        peers.check(way, x)
        x.copy_(before)


def test_the_formula_catches_a_wrong_mix():
    x = torch.randn(5, 3, 6, 6)
    for mix in Blend(.7, [1, 2, 3, 4, 0]), Paste([[1, 4], [2, 6]], (6, 6), [2, 3, 4, 0, 1]):
        torch.testing.assert_close(mix(x), peers.formula(mix, x))
        assert not torch.allclose(mix(x), peers.formula(mix, x.flip(0)))


@pytest.mark.parametrize('method, wrong', [
    ('MixUp', lambda x: x.where(torch.rand(x.shape) < .5, x.flip(0))), # a place of either
    ('MixUp', lambda x: x + 1),
    ('CutMix', lambda x: (x + x.flip(0))/2 + .25),
    ('CutMix', lambda x: x.double()),
    ('CutMix', lambda x: x.mul_(1)*0 + x.add_(1) - 1), # writes into its batch and does not say so
])
def test_check_refuses_what_does_not_mix(method, wrong):
    x, _ = peers.numbered((6, 3, 12, 12), 'float32', 'contiguous')
    with pytest.raises(AssertionError): peers.check(peers.way('', 'wrong', method, 'batch', lambda: wrong(x)), x)


def test_a_peer_that_cannot_is_named_with_its_reason(monkeypatch):
    def broken(x, y): yield peers.way('timm', 'broken', 'MixUp', 'batch', lambda: 1/0)
    monkeypatch.setattr(peers, 'timm', broken)
    monkeypatch.setattr(peers, 'missing', [name for name in peers.LIBRARIES if name not in ('fastmix', 'timm')])
    x, y = peers.numbered((4, 3, 8, 8), 'float32', 'contiguous')
    assert peers.refusals(x, y) == {'timm broken': 'division by zero'}
    assert 'broken' not in [w.name for w in peers.ways(x, y, peers.refusals(x, y))]


@pytest.mark.parametrize('task, shape', [('classes', (16, 7)), ('segmentation', (3, 5, 6, 4))])
def test_one_softmax_and_two_losses_agree(task, shape):
    pred, calls = losses.losses(task, shape)
    calls = {c.name: c for c in calls if c.library == 'fastmix'}
    assert len(calls) == 4
    found = {}
    for name, call in calls.items():
        grads = []
        handle = pred.register_hook(grads.append)
        found[name] = call.run(), grads[0]
        handle.remove()
    known = found['nn.CrossEntropyLoss()']
    for name in found:
        if 'weight' in name: continue
        torch.testing.assert_close(torch.Tensor(found[name][0]), known[0])
        torch.testing.assert_close(torch.Tensor(found[name][1]), known[1])


@pytest.mark.skipif(not memory.available(), reason='this system does not tell the peak of memory')
def test_the_peak_of_memory_is_what_is_known(table):
    rows = report.figures(table, 'memory')
    found = rows[rows.library == 'torch'].set_index('name').value
    assert found['x.clone()'] == pytest.approx(1, abs=.03) and found['two batches'] == pytest.approx(2, abs=.03)
    assert found['NumPy, two batches'] == pytest.approx(2, abs=.03)


def test_calls_run_in_turn_and_slow_ones_less_often():
    ran = []
    calls = {'quick': lambda: ran.append('quick'), 'slow': lambda: (ran.append('slow'), sum(range(200_000)))}
    times = measure.interleave(calls, rounds=10, warmup=2)
    assert len(times['quick']) == 10 and len(times['slow']) == 2
    assert set(ran[:2]) == set(ran[2:4]) == {'quick', 'slow'} and len(ran) == 16
    assert np.median(times['slow']) > np.median(times['quick'])


def test_the_quietest_attempt_counts():
    attempts = [{'base': [1., 2., 3.]}, {'base': [1., 1.1, 1.]}, {'base': [1., 5., 9.]}]
    best = measure.quietly(iter(attempts).__next__, 'base', most=0)
    assert best.times is attempts[1] and best.attempts == 3 and best.again > 0
    late = measure.quietly(iter(attempts).__next__, 'base', most=0, patience=0)
    assert late.times is attempts[0] and late.attempts == 1


def test_python_time_is_what_the_callback_adds(table):
    found, rows = report.python_time(table), report.figures(table, 'python')
    assert list(found.columns) == [*steps.PARTS, "events, fastai's types", 'events, a single step'] and len(found) == len(steps.ARMS)
    events = rows[rows.kind == 'events'].set_index(['library', 'name'])
    ours, nothing = events.loc['fastmix', 'MixUp()'], events.loc['', 'nothing']
    assert found['events']['fastmix MixUp()'] == f'{ours.value:.0f} ({1000*(ours.fastest-nothing.fastest):.0f})'
    assert found['events']['(a callback that does nothing)'] == f'{1000*nothing.ms:.0f} ({1000*nothing.fastest:.0f})'


def test_python_time_is_taken_in_pairs(monkeypatch):
    "Now the machine is fast and now slow, and the difference is what a callback adds in the same round"
    name = ' '.join(list(steps.ARMS)[1])
    times = {'nothing': [2., 1., 8.], name: [2.5, 1.25, 10.]}
    monkeypatch.setattr(run, 'interleave', lambda calls, *args, **kwargs: {call: times.get(call, [9., 9., 9.]) for call in calls})
    monkeypatch.setattr(steps, 'IN_A_ROW', 1)
    table = run.Run(0)
    run.python_time(table, 3)
    rows = [row for row in table.rows if f"{row['library']} {row['name']}" == name]
    assert len(rows) == 5 and all(row['value'] == pytest.approx(5e5) and row['fastest'] == 1250 for row in rows)


def test_pairs_leave_the_speed_of_the_machine_out(monkeypatch):
    times = {'base': [1., 4., 2., 8.], 'other': [1.5, 6., 2.9, 12.4]} # now fast, now slow
    monkeypatch.setattr(run, 'interleave', lambda calls, *args: times)
    for paired in False, True:
        table = run.Run(0)
        table.timed('step', '', {name: ({}, None) for name in times}, 'base', 4, '', paired=paired)
        base, other = table.rows
        assert base['value'] == 1 and other['rounds'] == 4
        assert other['value'] == (pytest.approx(1.5) if paired else pytest.approx(4.45/3))
        assert (other['spread'] < .05) == paired and (base['spread'] == 0) == paired


def test_all_calls_join_in_all_rounds_where_asked_to():
    calls = {'quick': lambda: None, 'slow': lambda: sum(range(200_000))}
    times = measure.interleave(calls, rounds=4, warmup=1, rarest=1)
    assert len(times['quick']) == len(times['slow']) == 4


def test_a_slope_of_one_is_linear():
    rows = pd.DataFrame(dict(case=[f'{n}×3×224×224 float32' for n in (8, 16, 64)], ms=[8., 16., 64.]))
    assert report.slope(rows) == pytest.approx(1)
    assert report.slope(rows.assign(ms=rows.ms**2)) == pytest.approx(2)


def test_who_is_ahead(table):
    rows = table[(table.section == 'mixing')].copy()
    case = rows.case.iloc[0]
    def cost(library, value): rows.loc[(rows.library == library) & (rows.method == 'MixUp') & (rows.per == 'batch') & (rows.case == case), 'value'] = value
    def ahead():
        found = report.compared(rows)
        return found[(found.case == case) & (found.method == 'MixUp') & (found.per == 'batch')].ahead.item()
    rows['spread'], rows['rounds'] = '0.1', '100'
    for name in peers.LIBRARIES: cost(name, '9')
    cost('fastmix', '1.5'), cost('torchvision', '1.2')
    assert ahead() == 'torchvision'
    cost('fastmix', '1.1')
    assert ahead() == 'fastmix'
    cost('fastmix', '1.19')
    assert ahead() == 'level'
    cost('fastmix', '1.14')
    assert ahead() == 'fastmix'
    rows['spread'] = '0.4' # the medians are known less well than they differ
    assert ahead() == 'level'


def test_python_time_leaves_the_loss_as_it_is():
    x, y = run.batch((8, 1, 4, 4), 'float32', 'contiguous')
    for part in steps.PARTS:
        for call in steps.events(x, y, part).values(): call()


def test_the_script_for_a_gpu_says_when_there_is_none(capsys, tmp_path):
    if torch.cuda.is_available(): pytest.skip('there is one')
    assert gpu.main(['--out', str(tmp_path)]) is None and 'No GPU here' in capsys.readouterr().out


def conv(device): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, peers.CLASSES)).to(device, torch.bfloat16)


class Breaks(nn.Module):
    "Cannot be compiled whole"
    def forward(self, x):
        torch._dynamo.graph_break()
        return x


def breaking(device): return nn.Sequential(Breaks(), conv(device))


class Changing(MixUp):
    "Cuts a column off every second batch, so that a compiled model must be compiled again"
    def before_batch(self):
        super().before_batch()
        self.odd = not getattr(self, 'odd', False)
        if self.odd: self.learn.xb = (self.learn.xb[0][..., 1:],)


def test_rehearsal_of_the_checks_for_a_gpu():
    shape = (4, 3, 8, 8)
    assert set(gpu.waits('cpu', shape, 1, model=conv).values()) == {''}
    assert gpu.compiled('cpu', shape, 2, {'MixUp': MixUp}, conv) == {'MixUp': ''}
    assert gpu.compiled('cpu', shape, 2, {'MixUp': MixUp}, breaking)['MixUp']
    assert gpu.compiled('cpu', shape, 3, {'changing': Changing}, conv)['changing']
    assert set(gpu.runs_ahead('cpu', shape, model=conv).values()) == {True}
    assert set(gpu.draws_wait('cpu', shape).values()) == {''}
    assert min(gpu.every_call('cpu', shape, 1).values()) > 0
    speed = gpu.bandwidth('cpu', (4, 3, 8, 8), 2)
    assert min(speed.values()) > 0 and len(speed) == 5


def test_a_fault_is_told_by_its_cause():
    x, y = run.batch((4, 3), 'float32', 'contiguous')
    learn = peers.learner(x, y, CutMix())
    learn.xb, learn.yb = (x,), (y,)
    assert gpu.fault(lambda: learn('before_batch')).startswith('ValueError: CutMix mixes places')


def test_figures_that_were_measured_are_kept(tmp_path, monkeypatch):
    def broken(*args): raise RuntimeError('out of memory')
    monkeypatch.setattr(gpu, 'REHEARSAL', dict(shape=(4, 3, 32, 32), runs=1))
    for name in 'waits', 'draws_wait', 'runs_ahead', 'compiled', 'kernels': monkeypatch.setattr(gpu, name, lambda device: {'no callback': 0})
    monkeypatch.setattr(gpu, 'every_call', lambda *args: {'x.clone()': 1.})
    monkeypatch.setattr(gpu, 'overhead', lambda *args: {'no callback': 1., 'MixUp': 1.02})
    monkeypatch.setattr(gpu, 'mixing', broken)
    table = gpu.main(['--device', 'cpu', '--out', str(tmp_path)])
    stored = pd.read_csv(tmp_path/'gpu.csv')
    assert len(stored) == len(table) and {'bandwidth, bf16', 'machine', 'version'} <= set(stored.what)
    assert 'out of memory' in stored[stored.what.str.startswith('mixing')].value.item()
    assert list(stored[stored.what.str.startswith('step of')].met.fillna('')) == ['', '', 'no']


@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.ones(peers.CLASSES, device='meta'), label_smoothing=.1), CrossEntropyLossFlat()])
@pytest.mark.parametrize('name', gpu.MIXERS)
def test_nothing_is_read_off_the_device(name, loss):
    "Torch's meta device has no data, so reading it raises; and what runs on it is what runs on a GPU"
    x, y = gpu.batch('meta', (8, 3, 16, 16), torch.float32)
    learn = peers.learner(x, y, gpu.MIXERS[name](), loss, conv('meta').float())
    step = gpu.training_step(learn, x, y)
    for _ in range(6): assert step().shape == ()
    with pytest.raises(RuntimeError): y.sum().item()


@pytest.mark.cuda
def test_the_host_never_waits(): assert set(gpu.waits('cuda').values()) == {''}


@pytest.mark.cuda
def test_no_method_waits(): assert {name for name, error in gpu.draws_wait('cuda').items() if error} <= {"GuidedMixUp(per='batch')", "GuidedMixUp(per='sample')"}


@pytest.mark.cuda
def test_the_host_runs_ahead(): assert set(gpu.runs_ahead('cuda').values()) == {True}


@pytest.mark.cuda
def test_waiting_is_noticed():
    with pytest.raises(RuntimeError), gpu.no_waiting('cuda'): torch.ones(3, device='cuda').sum().item()


@pytest.mark.cuda
def test_a_compiled_model_is_compiled_once(): assert set(gpu.compiled('cuda').values()) == {''}


@pytest.mark.cuda
def test_few_kernels():
    counts = gpu.kernels('cuda')
    assert counts['no callback'] > 0 and max(counts.values()) < counts['no callback'] + 60


@pytest.mark.cuda
def test_mixup_is_as_fast_as_the_memory():
    speed = gpu.bandwidth('cuda', **gpu.FULL)
    assert min(speed["MixUp(per='sample')"], speed["MixUp(per='batch')"]) >= .85*speed['x.clone()']


@pytest.mark.cuda
def test_a_step_takes_one_percent_more_at_most():
    took = gpu.overhead('cuda', **gpu.FULL)
    assert max(took.values()) <= 1.01*took['no callback']
