"""The question's cell against autograd and finite differences, and the numbers of its answer."""

import math

import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime import theory
from throughtime.cells import GRUResetBefore, Weights
from throughtime.recurrent import Recurrent

UNITS, INPUTS, STEPS = 6, 3, 9
TIGHT = {"rtol": 1e-10, "atol": 1e-13}
every_parameter = pytest.mark.parametrize("parameter", theory.PARAMETERS)
every_case = pytest.mark.parametrize("name", theory.CASES)


def scene(seed: int, units: int = 24, inputs: int = 8, steps: int = 60) -> tuple[theory.ChoGRU, Tensor, Tensor]:
    """A cell as torch draws it, inputs N(0, 1) and a loss gradient N(0, 1)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(steps, inputs, generator=generator, dtype=torch.float64)
    return theory.ChoGRU.random(units, inputs, seed), x, torch.randn(units, generator=generator, dtype=torch.float64)


def small(strength: float = 0.7) -> tuple[theory.Run, Tensor]:
    """A run in which nothing is special: an initial state, forced gates that differ by step and unit."""
    cell, x, gradient = scene(3, UNITS, INPUTS, STEPS)
    generator = torch.Generator().manual_seed(5)
    h0, z, r = (torch.randn(*shape, generator=generator).double() for shape in ((UNITS,), (STEPS, UNITS), (UNITS,)))
    return cell.run(x, h0, strength * z, strength * r), gradient


def forward(w: dict[str, Tensor], x: Tensor, h: dict[str, Tensor], force_z: Tensor, force_r: Tensor) -> Tensor:
    """One step, written once more, with the old state by the path that reads it."""
    z = 1 / (1 + torch.exp(-(w["W_z"] @ h["update"] + w["U_z"] @ x + w["b_z"] + force_z)))
    r = 1 / (1 + torch.exp(-(w["W_r"] @ h["reset"] + w["U_r"] @ x + w["b_r"] + force_r)))
    return z * h["carry"] + (1 - z) * torch.tanh(w["W_h"] @ (r * h["candidate"]) + w["U_h"] @ x + w["b_h"])


def forces(run: theory.Run) -> tuple[Tensor, Tensor]:
    """(T, H) each: what was added to the logits."""
    cell, before = run.cell, run.h[:-1]
    own_z = before @ cell.W_z.T + run.x @ cell.U_z.T + cell.b_z
    own_r = before @ cell.W_r.T + run.x @ cell.U_r.T + cell.b_r
    return run.logits_z - own_z, run.logits_r - own_r


def parameters(run: theory.Run) -> dict[str, Tensor]:
    return {name: getattr(run.cell, name) for name in theory.PARAMETERS}


def unrolled(run: theory.Run, copies: list[dict[str, Tensor]], h: Tensor, first: int = 0) -> Tensor:
    """The state after the steps that have copies, from the state before `first`."""
    force_z, force_r = forces(run)
    for i, w in enumerate(copies, start=first):
        h = forward(w, run.x[i], dict.fromkeys(theory.PATHS, h), force_z[i], force_r[i])
    return h


def test_forward_equals_the_equations():
    run, _ = small()
    for t in range(STEPS + 1):
        torch.testing.assert_close(run.h[t], unrolled(run, [parameters(run)] * t, run.h[0]), **TIGHT)


def test_each_path_is_autograds_at_its_own_port():
    run, _ = small()
    force_z, force_r = forces(run)
    for i in range(STEPS):
        for path in theory.PATHS:

            def at_port(value: Tensor, path: str = path, i: int = i) -> Tensor:
                h = dict.fromkeys(theory.PATHS, run.h[i]) | {path: value}
                return forward(parameters(run), run.x[i], h, force_z[i], force_r[i])

            by_autograd = torch.autograd.functional.jacobian(at_port, run.h[i])
            torch.testing.assert_close(run.paths[path][i], by_autograd, **TIGHT)


def test_jacobians_by_finite_differences():
    run, _ = small()
    step = 1e-5
    for i in range(STEPS):
        columns = [
            (unrolled(run, [parameters(run)], run.h[i] + e, i) - unrolled(run, [parameters(run)], run.h[i] - e, i))
            / (2 * step)
            for e in step * torch.eye(UNITS, dtype=torch.float64)
        ]
        torch.testing.assert_close(run.jacobians[i], torch.stack(columns, dim=1), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("t", [1, 5, STEPS])
def test_transport_is_autograds_derivative_of_the_state_by_each_earlier_one(t):
    run, _ = small()
    for lag in range(t):
        k = t - lag

        def later(h: Tensor, k: int = k) -> Tensor:
            return unrolled(run, [parameters(run)] * (t - k), h, k)

        expected = torch.autograd.functional.jacobian(later, run.h[k])
        torch.testing.assert_close(run.transport(t)[lag], expected, **TIGHT)


@every_parameter
@pytest.mark.parametrize("t", [1, 5, STEPS])
def test_terms_are_the_gradients_of_one_copy_of_the_parameters_a_step(parameter, t):
    run, gradient = small()
    copies = [{name: value.clone().requires_grad_() for name, value in parameters(run).items()} for _ in range(t)]
    loss = gradient @ unrolled(run, copies, run.h[0])
    by_step = torch.autograd.grad(loss, [copy[parameter] for copy in copies])
    terms = run.terms(parameter, gradient, t)
    for lag, value in enumerate(terms.values):
        torch.testing.assert_close(value.reshape(by_step[0].shape), by_step[t - 1 - lag], **TIGHT)


@every_parameter
def test_the_total_by_finite_differences(parameter):
    run, gradient = small()
    step, value = 1e-5, getattr(run.cell, parameter)
    by_difference = torch.zeros_like(value)
    for place in range(value.numel()):
        moved = torch.zeros_like(value)
        moved.view(-1)[place] = step
        up, down = (
            gradient @ unrolled(run, [parameters(run) | {parameter: value + side * moved}] * STEPS, run.h[0])
            for side in (1, -1)
        )
        by_difference.view(-1)[place] = (up - down) / (2 * step)
    total = run.terms(parameter, gradient).total.reshape(value.shape)
    torch.testing.assert_close(total, by_difference, rtol=1e-7, atol=1e-9)


@every_parameter
def test_transport_times_immediate_is_the_term(parameter):
    run, gradient = small()
    terms = run.terms(parameter, gradient)
    matrix, operand = run.immediate(parameter)
    for lag in range(STEPS):
        k = STEPS - lag
        expected = torch.einsum("i,ij,n->jn", gradient @ run.transport()[lag], matrix[k - 1], operand[k - 1])
        torch.testing.assert_close(terms.values[lag], expected, **TIGHT)
    assert float(terms.share.sum()) == pytest.approx(1, abs=1e-12)
    whole = torch.einsum("kij,kn->kijn", matrix, operand).flip(0)
    torch.testing.assert_close(terms.immediate_norm, whole.square().sum((1, 2, 3)).sqrt(), **TIGHT)
    torch.testing.assert_close(terms.norm, terms.values.square().sum((1, 2)).sqrt(), **TIGHT)
    by_unit = torch.stack([sum(abs(column) for column in value.unbind(1)) for value in terms.values])
    torch.testing.assert_close(terms.by_unit, by_unit, **TIGHT)


def test_the_question_and_the_library_say_the_same():
    """The same layer recorded: each gate's share and norm by lag, and the adjoints, are those of the formulas."""
    cell, x, gradient = scene(1, UNITS, INPUTS, STEPS)
    stacked = [torch.cat([getattr(cell, f"{kind}_{gate}") for gate in "rzh"]) for kind in "UWb"]
    layer = Recurrent(GRUResetBefore(), Weights(*stacked))
    with tt.record(layer) as rec:
        (layer(x[:, None])[0][-1, 0] @ gradient).backward()
    told = next(iter(rec.flow().layers.values()))
    run = cell.run(x)
    log10_adjoint = torch.log10(run.terms("U_z", gradient).transport_norm)
    torch.testing.assert_close(torch.from_numpy(told.adjoint.log10_norm), log10_adjoint, **TIGHT)
    for kind, name in {"U": "weight_ih", "W": "weight_hh", "b": "bias_ih"}.items():
        blocks = next(terms for key, terms in told.parameters.items() if name in key).gates
        for gate in "zrh":
            block, terms = blocks["n" if gate == "h" else gate], run.terms(f"{kind}_{gate}", gradient)
            torch.testing.assert_close(torch.from_numpy(block.share), terms.share, **TIGHT)
            torch.testing.assert_close(10 ** torch.from_numpy(block.log10_norm), terms.norm, **TIGHT)


def limit(name: str, run: theory.Run) -> Tensor:
    """What the question says that ∂h_i/∂h_{i−1} becomes, (T, H, H)."""
    units = run.h.shape[1]
    if name == "z=1":
        return torch.eye(units, dtype=run.h.dtype).expand(run.x.shape[0], units, units)
    if name == "z=r=0":
        return run.h.new_zeros(run.x.shape[0], units, units)
    return (1 - run.h[1:].square())[:, :, None] * run.cell.W_h  # of an Elman network, h = tanh(W_h h₋ + …)


@every_case
def test_the_three_cases_are_limits_that_come_closer_like_e_to_the_minus_logit(name):
    cell, x, _ = scene(0)
    gaps = []
    for strength in (8, 10, 12, 14):
        run = cell.run(x, **theory.case(name, strength))
        gaps.append(float((run.jacobians - limit(name, run)).abs().max()))
    for near, far in zip(gaps[1:], gaps[:-1], strict=True):
        assert near / far == pytest.approx(math.exp(-2), rel=0.05)
    assert gaps[-1] < 1e-5


def test_where_memory_is_cut_the_k_equals_t_term_stays_and_t_does_not_shrink_it():
    """z = r = 0: its share goes to 1, ‖∂L/∂U_z‖ falls only with its own z(1 − z), and ‖∂L/∂U_h‖ does not fall at all."""
    share, ratio, candidate = {}, {}, {}
    for strength in (0, 2, 4, 8):
        told = []
        for seed in range(20):
            cell, x, gradient = scene(seed)
            run = cell.run(x, **theory.case("z=r=0", strength))
            terms, free = run.terms("U_z", gradient), run.z[-1] * torch.sigmoid(-run.logits_z[-1])
            told.append((terms.share[0], terms.total.norm() / free.mean(), run.terms("U_h", gradient).total.norm()))
        share[strength], ratio[strength], candidate[strength] = torch.tensor(told).quantile(0.5, dim=0).tolist()
    assert share[0] == pytest.approx(0.72, abs=0.02)
    assert share[2] == pytest.approx(0.983, abs=0.002)
    assert share[4] == pytest.approx(0.999, abs=0.001)
    assert share[8] == pytest.approx(1, abs=1e-4)
    assert all(5.0 < value < 5.4 for value in ratio.values()), ratio
    assert candidate[8] == pytest.approx(candidate[4], rel=0.03)
    assert candidate[8] > candidate[0]


def test_the_k_equals_t_term_is_as_large_after_a_thousand_steps():
    cell, x, gradient = scene(0)
    long = torch.cat([x] * 17)
    for strength in (4, 8):
        near, far = (cell.run(each, **theory.case("z=r=0", strength)).terms("U_z", gradient) for each in (x, long))
        assert float(far.total.norm() / near.total.norm()) == pytest.approx(1, rel=1e-3)
        assert float(far.transport_norm[-1]) < 1e-300


def test_only_the_steps_since_its_last_reset_teach_a_unit():
    """Half of the units keep (z near 1) and are reset once, at step 40 of 60: what a loss on unit j says to row j of U_z."""
    for seed in range(3):
        cell, x, _ = scene(seed)
        z, r = torch.full((60, 24), 6.0), torch.zeros(60, 24)
        z[39, :12] = r[39, :12] = -8
        run = cell.run(x, z=z, r=r)
        before = []
        for unit, only in enumerate(torch.eye(24, dtype=torch.float64)):
            by_lag = run.terms("U_z", only).by_unit[:, unit]
            before.append(float(by_lag[21:].sum() / by_lag.sum()))  # k < 40: lags over 20
        assert max(before[:12]) < 0.01
        assert sorted(before[12:])[6] > 0.5


def test_towards_z_1_the_state_gradient_is_whole_and_the_gates_own_falls_like_1_minus_z():
    cell, x, gradient = scene(0)
    told = []
    for strength in (8, 10, 12):
        run = cell.run(x, **theory.case("z=1", strength))
        terms = run.terms("U_z", gradient)
        told.append((float(terms.transport_norm[-1] / terms.transport_norm[0]), float(terms.total.norm())))
    arriving, norms = zip(*told, strict=True)
    assert arriving[0] > 0.97
    assert arriving[-1] > 0.999
    for near, far in zip(norms[1:], norms[:-1], strict=True):
        assert near / far == pytest.approx(math.exp(-2), rel=0.02)


def test_at_exact_saturation_only_the_candidates_weights_are_taught():
    """In float64 σ(−800) is 0: z = r = 0 to the last bit."""
    cell, x, gradient = scene(0)
    run = cell.run(x, **theory.case("z=r=0", 800))
    assert not run.jacobians.any()
    for parameter in theory.PARAMETERS:
        gone = not run.terms(parameter, gradient).total.any()
        assert gone == (parameter in ("U_z", "W_z", "b_z", "U_r", "W_r", "b_r", "W_h"))


def test_saturation_is_seen_on_the_logit_not_on_the_gate():
    """In float32 σ(17) is exactly 1, so autograd's z(1 − z) is 0; from the logit it is e⁻¹⁷."""
    logit = torch.tensor([16.0, 17.0], requires_grad=True)
    z = torch.sigmoid(logit)
    assert z[1] == 1
    assert z[0] < 1
    assert torch.autograd.grad(z[1], logit)[0][1] == 0
    cell = theory.ChoGRU.random(UNITS, INPUTS, dtype=torch.float32)
    double = theory.ChoGRU(**{name: value.double() for name, value in vars(cell).items()})
    x = torch.randn(4, INPUTS, generator=torch.Generator().manual_seed(0))
    run, gradient = cell.run(x, z=20.0), torch.ones(UNITS)
    assert (run.z == 1).all()
    assert run.h[1].all()  # 1 − z is not 0
    expected = double.run(x.double(), z=20.0).terms("U_z", gradient.double()).total
    assert 0 < float(expected.norm()) < 1e-7
    torch.testing.assert_close(run.terms("U_z", gradient).total.double(), expected, rtol=1e-4, atol=0)


def test_the_reset_gates_slope_is_read_on_its_logit_too():
    cell = theory.ChoGRU.random(UNITS, INPUTS, dtype=torch.float32)
    double = theory.ChoGRU(**{name: value.double() for name, value in vars(cell).items()})
    x = torch.randn(4, INPUTS, generator=torch.Generator().manual_seed(0))
    run, gradient = cell.run(x, r=20.0), torch.ones(UNITS)
    assert (run.r == 1).all()
    expected = double.run(x.double(), r=20.0).terms("U_r", gradient.double()).total
    torch.testing.assert_close(run.terms("U_r", gradient).total.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("strength", [400, 700])
def test_shares_of_gradients_whose_squares_underflow(strength):
    cell, x, gradient = scene(0)
    terms = cell.run(x, torch.ones(24, dtype=torch.float64), **theory.case("z=1", strength)).terms("U_z", gradient)
    assert 0 < float(terms.norm.max()) < 1e-160
    assert float(terms.share.sum()) == pytest.approx(1, abs=1e-9)


def test_gain_is_the_recurrent_weights():
    plain, wide = (theory.ChoGRU.random(UNITS, INPUTS, gain=gain) for gain in (1.0, 3.0))
    for name in theory.PARAMETERS:
        factor = 3 if name.startswith("W") else 1
        torch.testing.assert_close(getattr(wide, name), factor * getattr(plain, name), **TIGHT)


def test_torch_draws_like_this():
    """`random` has the spread of torch.nn.GRU's initialisation."""
    cell, layer = theory.ChoGRU.random(64, 8), nn.GRU(8, 64)
    for kind, name in {"U": "weight_ih_l0", "W": "weight_hh_l0", "b": "bias_ih_l0"}.items():
        own = torch.cat([getattr(cell, f"{kind}_{gate}").flatten() for gate in "zrh"])
        theirs = getattr(layer, name).detach()
        assert float(own.abs().max()) <= 1 / 8
        assert float(own.std()) == pytest.approx(float(theirs.std()), rel=0.15)


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (lambda: theory.case("z=2", 1), "z=1"),
        (lambda: scene(0)[0].run(torch.zeros(5, 3, dtype=torch.float64)), "(T, 8)"),
        (lambda: small()[0].terms("V", small()[1]), "U_z"),
        (lambda: small()[0].terms("U_z", torch.zeros(2)), "(6,)"),
        (lambda: small()[0].terms("U_z", small()[1], t=0), "1 to 9"),
        (lambda: small()[0].transport(10), "1 to 9"),
        (lambda: small()[0].transport(3.0), "1 to 9"),
        (lambda: scene(0)[0].run(torch.zeros(0, 8, dtype=torch.float64)), "T ≥ 1"),
        (lambda: scene(0)[0].run(torch.zeros(5, 8)), "float64"),
        (lambda: scene(0)[0].run(scene(0)[1], torch.zeros(24)), "h0 of shape (24,), torch.float32"),
        (lambda: scene(0)[0].run(scene(0)[1], z=torch.zeros(60)), "broadcasts to (60, 24)"),
        (lambda: scene(0)[0].run(scene(0)[1], r=torch.zeros(2, 60, 24)), "r of shape (2, 60, 24)"),
        (lambda: small()[0].terms("U_z", small()[1].float()), "of torch.float64"),
    ],
)
def test_errors_say_what_was_expected(fails, words):
    with pytest.raises(tt.ThroughtimeError) as error:
        fails()
    assert words in str(error.value)


def test_norms_of_what_is_too_small_to_be_squared():
    cell, x, gradient = scene(0)
    terms = cell.run(x, **theory.case("z=r=0", 8)).terms("U_z", gradient)
    far = terms.transport[-1]
    assert not far.square().any()
    expected = 2.0**-600 * torch.linalg.vector_norm(far * 2.0**600)
    torch.testing.assert_close(terms.transport_norm[-1], expected, rtol=1e-12, atol=0)
