"""Plans: what fixes the rows of a run, on paper and back; runs repeated from their summary alone."""

import json
import shutil
import subprocess
import sys

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdflow as gf
from gdflow.basins import Crossings, Descent, Drift, GradientDescent, Limits, Plan, make_plan
from gdflow.initialization import Around, Balanced, Gaussian, Orthogonal, Support
from gdflow.records import digest, record, restore

KEY = jax.random.key(29)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(3)
    return gf.Problem(rng.normal(size=(3, 40)), rng.normal(size=(2, 40)), features=("a", "b", "c"), center=True)


def plans(problem):
    """Plans with every kind of part."""
    law, net = Gaussian(problem.widths([4])), Gaussian(problem.widths([4])).sample(KEY, 3)
    square = gf.Problem.from_singular_values([2.0, 1.0])
    return {
        "default": make_plan(problem, law, key=KEY),
        "rkc": make_plan(problem, law, key=KEY, method=gf.integrator(gf.RKC(7), rtol=1e-4, atol=1e-7)),
        "implicit": make_plan(problem, law, key=KEY, method=gf.integrator(diffrax.Kvaerno5(), rtol=1e-4)),
        "descent": make_plan(problem, law, key=KEY, method=GradientDescent(0.1)),
        "adam": make_plan(problem, law, key=KEY, method=Descent(optax.adam, 0.1, b1=0.8)),
        "limits": make_plan(problem, law, key=KEY, limits=Limits(t1=3.0, max_steps=50, dwell=1.0)),
        "verdict": make_plan(problem, law, key=KEY, verdict=gf.verdicts.AlmostSure(problem, law.widths, num_levels=2)),
        "riders": make_plan(problem, law, key=KEY, riders=(Drift(), Crossings([3.0, 2.0]))),
        "key": make_plan(problem, law, key=jax.random.key(30)),
        "law": make_plan(problem, Gaussian(problem.widths([4]), 0.3), key=KEY),
        "around": make_plan(problem, Around(net, 1e-2), key=KEY),
        "orthogonal": make_plan(square, Orthogonal((2, 2, 2)), key=KEY),
        "balanced": make_plan(square, Balanced((2, 2, 2), singular_values=0.5), key=KEY),
        "listed": make_plan(problem, gf.LayerTuple([w[None] for w in net.weights])),
        "data": make_plan(problem.in_coordinates("whitened"), law, key=KEY),
    }


@pytest.mark.slow
def test_plans_are_read_back_as_they_were(problem):
    """Through JSON: every leaf to the last bit, every class, and the same fingerprint; all fingerprints differ."""
    digests = set()
    for name, plan in plans(problem).items():
        back = Plan.from_record(json.loads(json.dumps(plan.record)))
        for part in ("problem", "starts", "verdict", "riders", "limits"):
            assert eqx.tree_equal(getattr(back, part), getattr(plan, part), typematch=True), (name, part)
        assert type(back.method) is type(plan.method)
        assert back.method.name == plan.method.name
        assert back.digest == plan.digest
        digests.add(plan.digest)
    assert len(digests) == 15


def test_equal_arguments_give_equal_plans(problem):
    law = Gaussian(problem.widths([4]))
    assert make_plan(problem, law, key=KEY).digest == make_plan(problem, law, key=KEY).digest
    assert make_plan(problem, law, key=KEY, method=gf.integrator()).digest == make_plan(problem, law, key=KEY).digest


REPEAT = """
import jax
jax.config.update("jax_enable_x64", True)
import gdflow as gf
print(gf.repeat("first/summary.json", folder="second", progress=False).certified)
"""


@pytest.mark.slow
def test_a_run_is_repeated_from_its_summary_alone(problem, tmp_path):
    """By a process that knows nothing else: equal labels and steps; times to the last bits."""
    (tmp_path / "first").mkdir()
    estimate = gf.basin_sizes(
        problem, Gaussian(problem.widths([4])), 60, key=KEY, limits=Limits(t1=4.0), audit=20, folder=tmp_path / "first",
        progress=False,
    )  # fmt: skip
    shutil.rmtree(tmp_path / "first" / "outcomes")
    run = subprocess.run([sys.executable, "-c", REPEAT], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(run.stdout) == estimate.certified
    again = gf.load(tmp_path / "second")
    for name in ("id", "status", "verdict", "limit", "highest", "steps"):
        assert again.outcomes[name].equals(estimate.outcomes[name])
    np.testing.assert_allclose(again.outcomes["time"], estimate.outcomes["time"], rtol=1e-12)
    assert again.audit.num == 20
    assert again.plan.digest == estimate.plan.digest
    assert (again.ids, again.confidence) == (estimate.ids, estimate.confidence)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("plan"), "plan is None"),
        (lambda s: s["plan"].pop("method"), "the record of the plan has no method"),
        (lambda s: s["plan"]["method"].update(type="nowhere.such:Method"), "nowhere.such:Method is needed: import"),
        (lambda s: s["plan"]["method"].update(type="os:system"), "os:system is not something that a record may name"),
        (lambda s: s["plan"]["method"].update(type="gdflow.basins:NoMethod"), "there is no such thing"),
        (lambda s: s["plan"]["limits"]["fields"].update(max_steps=77), "has been changed"),
        (lambda s: s.update(first_id=5), "do not belong together"),
        (lambda s: s.update(first_id=-5), "do not lie between 0 and"),
        (lambda s: s.update(unit=0), "its unit is 0"),
        (lambda s: s.update(requests=["x"]), "what was asked for cannot be"),
        (lambda s: s.update(token=7), "token is 7"),
        (lambda s: s.update(requests=[{"num": 20}]), "what was asked for cannot be"),
        (lambda s: s["requests"][0].update(num=-1), "what was asked for cannot be"),
        (lambda s: s["plan"].update(riders=[None]), "damaged|has been changed"),
        (lambda s: s["plan"]["limits"]["fields"].update(t1={"opaque": "<x>"}), "<x> could not be written down"),
        (
            lambda s: s["plan"]["limits"]["fields"].update(t1={"what": 1}),
            "a record with the entries what means nothing",
        ),
        (lambda s: s["plan"].update(method=None), "damaged: its method is a NoneType"),
        (
            lambda s: s["plan"]["problem"]["fields"]["objective"]["fields"].update(
                target={"array": "no", "shape": [], "values": []}
            ),
            "damaged",
        ),
        (
            lambda s: s["plan"]["problem"]["fields"]["objective"]["fields"].update(
                target={"array": "f8", "shape": [9], "bytes": "AAAA"}
            ),
            "damaged",
        ),
    ],
)
def test_damaged_campaigns_are_refused(folder, tmp_path, damage, message):
    shutil.copytree(folder, tmp_path / "x")
    change(tmp_path / "x" / "campaign.json", damage)
    with pytest.raises(ValueError, match=message):
        gf.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("plan"), "has no plan"),
        (lambda s: s.update(audit={"num": 100}), "its audit or its confidence cannot be"),
        (lambda s: s.update(confidence=7), "its audit or its confidence cannot be"),
        (lambda s: s.update(first_id=5), "do not belong together"),
        (lambda s: s.update(digest="5"), "do not belong together"),
        (lambda s: s.update(num="61"), "num is '61'"),
        (lambda s: s.update(confidence=None), "confidence is None"),
    ],
)
def test_damaged_summaries_are_refused(folder, tmp_path, damage, message):
    shutil.copytree(folder, tmp_path / "x")
    change(tmp_path / "x" / "summary.json", damage)
    with pytest.raises(ValueError, match=message):
        gf.load(tmp_path / "x")


def change(path, damage):
    said = json.loads(path.read_text())
    damage(said)
    path.write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(problem, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    gf.basin_sizes(problem, Gaussian(problem.widths([4])), 20, key=KEY, audit=0, folder=path, progress=False)
    return path


def test_what_is_no_result_of_a_run(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no results of a campaign: .*campaign\.json does not exist"):
        gf.load(tmp_path)
    (tmp_path / "campaign.json").write_text("{")
    with pytest.raises(ValueError, match="is not a file of a campaign"):
        gf.load(tmp_path)
    (tmp_path / "campaign.json").write_bytes((folder / "campaign.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"there are no results in .* yet"):
        gf.load(tmp_path)
    (tmp_path / "summary.json").write_bytes((folder / "summary.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"there are no results in .* yet"):
        gf.load(tmp_path)
    (tmp_path / "outcomes").mkdir()
    (unit,) = (folder / "outcomes").iterdir()
    (tmp_path / "outcomes" / unit.name).write_bytes(unit.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"is damaged: {unit.name}: its metadata cannot be read"):
        gf.load(tmp_path)


@pytest.mark.parametrize(
    "x",
    [
        1, -2.5, 1e-300, float("inf"), True, None, "text", (1, (2.0, "x")), Support.NULL, jax.random.split,
        np.arange(100.0), np.array([[np.nan, 1.0]]), np.zeros((0, 3)), jnp.arange(3, dtype=jnp.int32), Gaussian((2, 3)),
    ],
)  # fmt: skip
def test_records_are_exact(x):
    back = restore(json.loads(json.dumps(record(x))))
    assert type(back) is type(x)
    if hasattr(x, "dtype"):
        assert back.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(back), np.asarray(x))
    else:
        assert back == x


def test_keys_are_recorded_with_their_kind():
    for impl in ("threefry2x32", "rbg"):
        key = jax.random.key(7, impl=impl)
        back = restore(json.loads(json.dumps(record(key))))
        assert (back == key).all()
        assert jax.random.key_impl(back) == jax.random.key_impl(key)


def test_what_has_no_name_is_recorded_but_not_read_back():
    class Local:
        pass

    for x, message in (
        (lambda x: x, "no such thing: other versions, or a local definition"),
        (Local(), "could not be written"),
    ):
        with pytest.raises(ValueError, match=message):
            restore(record(x))
    assert digest(record((1, 2.0))) == digest(record([1, 2.0])) != digest(record((1, 2.5)))


@pytest.mark.parametrize(
    ("starts", "options", "message"),
    [
        (Gaussian((3, 4, 2)), {}, "a law of starts needs a key"),
        ("gaussian", {"key": KEY}, "a law of starts is needed|violates|parameter"),
        (gf.LayerTuple([np.ones((4, 3)), np.ones((2, 4))]), {"key": KEY}, "a key is for laws of starts"),
        (
            Gaussian((3, 4, 2)),
            {"key": KEY, "method": diffrax.Tsit5()},
            "the method must be an? AbstractMethod|parameter",
        ),
        (Gaussian((3, 4, 2)), {"key": KEY, "limits": 5.0}, "the limits must be a Limits|parameter"),
    ],
)
def test_parts_that_do_not_fit_are_refused(problem, starts, options, message):
    with pytest.raises(TypeError, match=message):
        make_plan(problem, starts, **options)


@pytest.mark.slow
def test_given_starts_are_run_as_they_are(problem):
    """The same networks drawn and listed: the same rows."""
    law = Gaussian(problem.widths([4]))
    drawn = make_plan(problem, law, key=KEY).collect(range(10))
    listed = make_plan(problem, law.sample_batch(KEY, range(10))).collect(range(10))
    for name in ("id", "status", "limit", "steps"):
        assert drawn[name].equals(listed[name])
    np.testing.assert_allclose(drawn["time"], listed["time"], rtol=1e-12)
    with pytest.raises(ValueError, match="there are 10 starts: ids 0 … 10"):
        gf.basin_sizes(problem, law.sample_batch(KEY, range(10)), 11, progress=False)
    with pytest.raises(TypeError, match="how many starts"):
        gf.basin_sizes(problem, law, key=KEY, progress=False)


@pytest.mark.slow
def test_lists_are_looked_at_as_a_whole():
    """One balanced start on the wrong side of det W = 0 among others: its integration ends at a minimum, its flow does not."""
    square = gf.Problem.from_singular_values([3.0, 2.0, 1.0])
    generic = Gaussian((3, 3, 3)).sample_batch(KEY, range(6))
    balanced = Balanced((3, 3, 3), singular_values=0.5).sample_batch(KEY, range(20))
    signs = np.linalg.det(np.asarray(jax.vmap(lambda net: net.end_to_end)(balanced)))
    wrong = jax.tree.map(lambda w: w[np.flatnonzero(signs < 0)[:1]], balanced)
    mixed = jax.tree.map(lambda *w: jnp.concatenate(w), generic, wrong)
    with pytest.raises(ValueError, match=r"Support\.BALANCED.*start number 6 of the batch"):
        make_plan(square, mixed)
    said = make_plan(square, gf.basins.Listed(balanced, Support.BALANCED)).collect(range(20))
    np.testing.assert_array_equal(said["limit"].to_numpy(), signs < 0)


def test_a_list_is_a_set_of_measure_zero():
    """A start on the stable manifold of a saddle, of which "almost surely" says nothing."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    net = gf.LayerTuple([np.array([[0.0, 0.5]]), np.array([[0.0], [0.5]])])
    with pytest.raises(ValueError, match="Lebesgue-almost every start"):
        make_plan(problem, net, verdict=gf.verdicts.AlmostSure(problem, (2, 1, 2)))


def test_rows_of_another_run_are_not_opened(problem, folder, tmp_path):
    law = Gaussian(problem.widths([4]))
    gf.basin_sizes(problem, law, 20, key=jax.random.key(1), audit=0, folder=tmp_path, progress=False)
    (unit,) = (folder / "outcomes").iterdir()
    (tmp_path / "outcomes" / unit.name).write_bytes(unit.read_bytes())
    with pytest.raises(ValueError, match="of another plan"):
        gf.load(tmp_path)
