"""The guided search: what it asks, what it makes of what it sees, resume, and that it finds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from evomerge.search import make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.base import Genome, Look, Measured, OptionValue
from evomerge.search.guided import GuidedSearch
from evomerge.space import Gene
from tests.search.toy import (
    BLOCKS,
    GENES,
    ITEMS,
    NAMES,
    PLACES,
    REFERENCES,
    D,
    Run,
    Toy,
    drive,
    repeat,
    true_mean,
)

STARTUP, PROBES = 44, 6  # long enough that a version of the data has probes
SHORT: dict[str, OptionValue] = {"startup": 12, "probes": 2}  # with slopes versions are shorter
KINDS = {
    "signals": Toy(),
    "one without": Toy(signals=frozenset(NAMES[:2])),
    "no signals": Toy(signals=frozenset()),
    "a perplexity": Toy(surprise=True),
    "a size": Toy(size=True),
    "all": Toy(signals=frozenset(NAMES[1:]), surprise=True, size=True),
    "slopes": Toy(slopes=True),
}
each_kind = pytest.mark.parametrize("toy", KINDS.values(), ids=list(KINDS))


def guided(toy: Toy, seed: int = 1, **options: OptionValue) -> GuidedSearch:
    """With a short start unless other options are given."""
    short = SHORT if toy.slopes else {"startup": STARTUP, "probes": PROBES}
    given = short | options
    aims = len(toy.names) + toy.size
    made = make_search(SearchSettings("guided", seed, given), D, aims, GENES, toy.measured)
    assert isinstance(made, GuidedSearch)
    return made


def array(genome: Genome) -> np.ndarray:
    """Weights: the toy's genes reach from 0 to 1.5."""
    return np.array(genome) * 1.5


def is_scored(turn: int) -> bool:
    return turn >= STARTUP and (turn - STARTUP) % (PROBES + 1) == 0


@pytest.fixture(scope="module")
def run() -> Run:
    """One after the other, from one reference, without trouble."""
    return drive(guided(Toy()), Toy(), 7, references=REFERENCES[:1])


def test_scores_are_wanted_after_the_startup_and_then_after_so_many_probes(run: Run) -> None:
    looks = list(run.looks.values())

    assert len(looks) > STARTUP + 3 * (PROBES + 1)
    assert [look is None for look in looks] == [is_scored(turn) for turn in range(len(looks))]


def test_a_probe_is_one_block_by_signal_and_every_block_takes_its_turn() -> None:
    search = guided(Toy(), startup=4 * BLOCKS)
    search.ask(range(4 * BLOCKS))
    looks = [search.look(candidate) for candidate in range(4 * BLOCKS)]

    assert all(look is not None and look.signal and len(look.blocks) == 1 for look in looks)
    assert [look.blocks[0] for look in looks if look] == [
        n % BLOCKS for n in range(2 * BLOCKS) for _ in range(2)
    ]


@pytest.mark.parametrize("reference", [None, (0.4,) * D])
def test_pairs_of_probes_are_opposite_and_answer_the_same_items(reference: Genome | None) -> None:
    toy, search = Toy(), guided(Toy(), step=0.05)
    if reference is not None:
        drive(search, toy, 0, references=[reference])
    genomes = search.ask(range(100, 100 + STARTUP))
    middle = reference or (0.5,) * D
    for turn in range(0, STARTUP, 2):
        first, second = np.array(genomes[turn]), np.array(genomes[turn + 1])
        assert (first + second) / 2 == pytest.approx(np.array(middle), abs=1e-12)
        assert np.abs(first - second).max() > 0.01
        assert search.look(100 + turn) == search.look(101 + turn)


def test_the_turn_counts_from_the_first_that_was_asked_for() -> None:
    first, later = guided(Toy()), guided(Toy())
    genomes = first.ask(range(STARTUP))

    assert later.ask(range(50, 50 + STARTUP)) == genomes
    for turn in range(STARTUP, STARTUP + 8):
        first.replay(turn, genomes[0])
        later.replay(50 + turn, genomes[0])
    count = STARTUP + 8
    assert [first.look(c) for c in range(count)] == [later.look(50 + c) for c in range(count)]


def test_a_step_is_so_long_in_units_of_weights() -> None:
    search = guided(Toy(), step=0.1, startup=200)
    pairs = np.array([array(genome) for genome in search.ask(range(200))]).reshape(100, 2, D)
    lengths = np.sqrt(((pairs[:, 1] - pairs[:, 0]) ** 2).mean(axis=1)) / 2

    assert lengths.min() >= 0.05 - 1e-12
    assert lengths.max() <= 0.2 + 1e-12
    assert lengths.max() > 2.5 * lengths.min()


def test_a_weight_of_one_is_the_unit_and_other_ranges_are() -> None:
    """Log and narrow genes, and other parameters, move in parts of their ranges."""
    genes = [
        Gene("weight[a]", 0.0, 4.0, log=False),
        Gene("weight[b]", 0.0, 0.5, log=False),
        Gene("weight[c]", 0.01, 4.0, log=True),
        Gene("density[a]", 0.0, 4.0, log=False),
    ]
    settings = SearchSettings("guided", 1, {"step": 0.05, "structure": False, "startup": 1000})
    search = make_search(settings, 4, 3, genes, Toy().measured)
    spread = np.array(search.ask(range(1000))).std(axis=0)

    assert spread[0] / spread[1:] == pytest.approx(np.full(3, 0.25), rel=0.15)


def test_with_structure_genes_of_an_expert_or_a_place_move_together() -> None:
    def moves(structure: bool) -> Counter[int]:
        """How many probes of 40 have so many different moves."""
        search = guided(Toy(), step=0.05, structure=structure, startup=80)
        second = np.array(search.ask(range(80)))[1::2] - 0.5
        return Counter(len(set(np.round(move, 9))) for move in second)

    assert moves(structure=False) == {D: 40}
    with_it = moves(structure=True)
    assert set(with_it) <= {3, 6, D}  # experts or places, depths, genes or module kinds
    assert with_it[3] > with_it[D]


def test_without_signal_probes_are_by_the_metric() -> None:
    search = guided(Toy(), signal=False)
    search.ask(range(2))

    assert search.look(0) == Look((0,), signal=False)
    assert len(drive(guided(Toy(), signal=False), Toy(), 5).scored) > len(REFERENCES)


def test_without_probes_everything_is_scored() -> None:
    run = drive(guided(Toy(), probes=0, startup=4), Toy(), 20)

    assert set(run.looks.values()) == {None}
    assert len(run.scored) == len(REFERENCES) + 20


def test_a_candidate_to_be_scored_is_within_the_radius_of_one_that_was() -> None:
    run = drive(guided(Toy(), radius=0.1), Toy(), 5)
    scored = [array(call.genome) for call in run.scored]
    for i in range(len(REFERENCES), len(scored)):
        nearest = min(float(np.linalg.norm(scored[i] - before)) for before in scored[:i])
        assert 0 < nearest <= 0.1 + 1e-9


@each_kind
def test_every_kind_of_objective_is_learned_from(toy: Toy) -> None:
    """Without a model, the best reference itself would be asked for again."""
    run = drive(guided(toy), toy, 8, waiting=3, trouble=0.5)
    asked = [call.genome for call in run.asked]

    assert all(0.0 <= gene <= 1.0 for genome in asked for gene in genome)
    assert not set(asked) & set(REFERENCES)
    assert len(run.scored) > len(REFERENCES) + 2


def test_what_has_no_signal_is_seen_in_the_same_probe_by_the_metric() -> None:
    toy = KINDS["all"]
    search = guided(toy)
    drive(search, toy, 0)
    (genome,) = search.ask([50])
    found = toy.evidence(genome, Look((3,), signal=True))
    for evidence in found:
        search.observe(50, genome, evidence)

    assert [set(e.items) for e in found] == [{"names", "sorts"}, {"adds", "surprise", "size"}]
    row = search._rows[50, False]
    assert set(row.sums) == {*NAMES, "surprise", "size"}
    assert row.blocks == {3: 8}
    assert row.value("adds") == toy.items("adds", genome, False)[6:8].mean()
    assert row.value("size") == pytest.approx(np.mean(genome))
    soft = np.exp(toy.items("names", genome, True)[6:8] / 2)
    assert row.value("names") == pytest.approx(soft.mean())


def test_rungs_of_one_candidate_add_up() -> None:
    toy, whole, parts = Toy(), guided(Toy()), guided(Toy())
    genome = (0.3,) * D
    (at_once,) = toy.evidence(genome, Look(tuple(range(BLOCKS)), signal=False))
    whole.observe(0, genome, at_once)
    for blocks in ((0, 1), (2, 3, 4), tuple(range(5, 20))):
        (part,) = toy.evidence(genome, Look(blocks, signal=False))
        parts.observe(0, genome, part)

    assert parts._rows[0, True].sums == whole._rows[0, True].sums
    assert parts._rows[0, True].blocks == whole._rows[0, True].blocks
    assert sum(whole._rows[0, True].blocks.values()) == 3 * ITEMS


@each_kind
def test_at_the_centre_the_model_expects_what_was_told(toy: Toy) -> None:
    """Means by objective are made values, and values scores, as the engine makes them."""
    search = guided(toy)
    drive(search, toy, 5)
    search.ask([1000])
    model = search._model
    assert model is not None
    genome = tuple((model.centre / 1.5).tolist())

    assert search._aims(model, model.level) == pytest.approx(toy.scores(genome))


def test_each_aim_takes_its_turn() -> None:
    """Aims by name: adds, names, size, sorts, surprise; all alike, then each by itself."""
    toy = Toy(surprise=True, size=True)
    run = drive(guided(toy), toy, 12)
    told = np.array([call.scores for call in run.scored[len(REFERENCES) :]])

    assert len(told) >= 6
    for aim in (2, 4):
        others = np.delete(told[:6, aim], aim + 1)
        assert told[aim + 1, aim] > np.median(others)


@each_kind
def test_cut_anywhere_it_goes_on_as_if_it_had_not_been(toy: Toy) -> None:
    run = drive(guided(toy), toy, 10, waiting=4, trouble=0.8)
    kinds = Counter(call.kind for call in run.calls)
    assert min(kinds[kind] for kind in ("ask", "observe", "tell", "fail")) >= 2
    for cut in range(11, len(run.calls), 37):
        resumed = guided(toy)
        for call in run.calls[:cut]:
            repeat(resumed, call)
        for call in run.calls[cut:]:
            if call.kind == "ask":
                assert resumed.ask([call.candidate]) == [call.genome], f"cut {cut}"
                assert resumed.look(call.candidate) == run.looks[call.candidate]
            else:
                repeat(resumed, call)


def test_what_was_seen_but_of_no_version_decides_nothing() -> None:
    """Proposals change with a told score, not with each probe."""
    toy, search, other = Toy(), guided(Toy()), guided(Toy())
    for each in (search, other):
        drive(each, toy, 0)
        each.ask([50])
    genome = search.ask([51])[0]
    (evidence,) = toy.evidence(genome, Look((0,), signal=True))
    search.observe(51, genome, evidence)
    other.ask([51])

    assert search.ask([52]) == other.ask([52])


def test_references_that_failed_and_none_at_all_are_no_obstacle() -> None:
    search = guided(Toy())
    search.fail(0)
    run = drive(search, Toy(), 8, references=())
    first, *later = [call.genome for call in run.scored]

    assert first == (0.5,) * D
    assert max(map(true_mean, later)) > true_mean(first) + 0.1


def best_of_random(toy: Toy, seed: int, count: int) -> Genome:
    random = np.random.default_rng(seed)
    drawn = [tuple(random.random(D).tolist()) for _ in range(count)]
    return max(drawn, key=lambda genome: float(np.mean(toy.scores(genome))))


@pytest.mark.parametrize("waiting", [1, 16])
def test_ten_full_evaluations_find_what_no_reference_and_no_random_point_is(waiting: int) -> None:
    """With the table's options: 60 probes first, then a score after each 20."""
    toy, seeds = Toy(), (0, 1, 2)
    options = {"startup": 60, "probes": 20}
    runs = [drive(guided(toy, seed, **options), toy, 10, waiting=waiting) for seed in seeds]
    found = [true_mean(run.best()) for run in runs]
    by_chance = [true_mean(best_of_random(toy, seed, 10)) for seed in seeds]

    assert all(10 * toy.whole <= run.cost < 11 * toy.whole for run in runs)
    assert np.mean(found) > max(map(true_mean, REFERENCES)) + 0.04
    assert all(a > b + 0.05 for a, b in zip(found, by_chance, strict=True))


def test_sixteen_may_wait_at_once_but_the_first_to_be_scored_waits_for_the_probes() -> None:
    toy, search = Toy(), guided(Toy(), startup=10, probes=6)
    drive(search, toy, 0)
    genomes = search.ask(range(20, 36))
    assert len(set(genomes)) == 10

    for candidate, genome in enumerate(genomes[:9], 20):
        look = search.look(candidate)
        assert look is not None
        for evidence in toy.evidence(genome, look):
            search.observe(candidate, genome, evidence)
        assert search.ask([30]) == []
    search.fail(29)
    assert len(search.ask(range(30, 46))) == 16
    assert [c for c in range(30, 46) if search.look(c) is None] == [30, 37, 44]


def test_without_measures_it_learns_from_scores_alone() -> None:
    settings = SearchSettings("guided", 1, {"startup": 8})
    search = make_search(settings, D, 3, GENES)
    assert isinstance(search, GuidedSearch)
    toy, told = Toy(), []
    for candidate in range(60):
        (genome,) = search.ask([candidate])
        assert search.look(candidate) is None
        search.tell(candidate, genome, toy.scores(genome))
        told.append(float(np.mean(toy.scores(genome))))

    assert max(told[-20:]) > max(told[:20]) + 0.1


def test_the_toy_has_places_that_its_references_have_not() -> None:
    """What the searches above are to find: each expert at its own place."""
    own = tuple(0.55 * (e == p) for e in range(len(NAMES)) for p in range(len(PLACES)))

    assert true_mean(own) > max(map(true_mean, REFERENCES)) + 0.1


def test_measured_blocks_may_be_few() -> None:
    blocks = ({name: tuple(range(ITEMS)) for name in NAMES},)
    known = Measured(blocks, frozenset(NAMES), Toy().fitness)
    settings = SearchSettings("guided", 1)
    search = make_search(settings, D, 3, GENES, known)
    assert isinstance(search, GuidedSearch)
    search.ask(range(4))

    assert {search.look(c) for c in range(4)} == {Look((0,), signal=True)}
