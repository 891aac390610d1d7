"""What is particular to UniTok: experts and domains, identifiers in both orders, unseen domains.

Numbers in docstrings are the invariants (section 6) and the defects of the official code (section 7) of the
specification that a test covers. Losses and gradients: `test_unitok_network`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.data.histories import Histories
from catalex.decoding import Trie, search_all
from catalex.decoding.reference import reference_beam_search
from catalex.errors import CatalexError
from catalex.models.t5 import T5, T5Options
from catalex.quantize.experts import ExpertCodebooks
from catalex.tokenizers import unitok_training
from catalex.tokenizers.base import TokenizerDomain
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.identifiers import IdentifierTable
from catalex.tokenizers.unitok import UniTok
from catalex.tokenizers.unitok_options import UniTokOptions
from catalex.tokenizers.vocabulary import Vocabulary
from catalex.types import JSON, Codes, Floats

WIDTH, LEVELS, SIZE = 10, 3, 8
SETTINGS: dict[str, Any] = {
    "levels": LEVELS,
    "codebook_size": SIZE,
    "experts": None,
    "routed": 1,
    "shared": True,
    "hidden": [16],
    "latent": 6,
    "combination": "sum",
    "renormalise": False,
    "router_input": "latent",
    "router_init": "domains",
    "expert_token": "last",
    "calibration": 0.03,
    "beta": 1.0,
    "normalised_information": True,
    "supervision": 0.1,
    "load_balancing": 0.0,
    "reduction": "sum",
    "normalise": "centre",
    "balance": "proportional",
    "learning_rate": 5e-3,
    "batch": 96,
    "epochs": 40,
    "warmup_steps": 100,
    "revive_until": 0.8,
    "information_every": 15,
    "checkpoint_every": 50,
}
"""Small; every setting that a test relies on is written out."""


def clustered(name: str, items: int, seed: int, width: int = WIDTH) -> TokenizerDomain:
    """A domain of its own region, with 12 clusters of its own."""
    generator = np.random.default_rng(seed)
    place = 4 * generator.normal(size=width)
    centres = place + 1.5 * generator.normal(size=(12, width))
    vectors = centres[generator.integers(0, 12, items)] + 0.5 * generator.normal(size=(items, width))
    return TokenizerDomain(name, vectors.astype(np.float32), Histories.from_lists([[0, 1]]), f"split-{name}")


def of(name: str, vectors: Floats) -> TokenizerDomain:
    return TokenizerDomain(name, vectors, Histories.from_lists([[0]]), f"split-{name}")


DOMAINS = [clustered("toys", 160, 0), clustered("office", 110, 1), clustered("games", 70, 2)]
UNSEEN = clustered("yelp", 90, 7).vectors
ALL = np.concatenate([domain.vectors for domain in DOMAINS])


def make(**changes: Any) -> UniTok:
    return UniTok(UniTokOptions.parse({**SETTINGS, **changes}, "tokenizer"))


def fit(
    domains: list[TokenizerDomain] = DOMAINS, seed: int = 0, **changes: Any
) -> tuple[UniTok, Mapping[str, JSON]]:
    tokenizer = make(**changes)
    return tokenizer, tokenizer.fit(domains, seed=seed, device="cpu")


@pytest.fixture(scope="module")
def trained() -> tuple[UniTok, Mapping[str, JSON]]:
    return fit()


@pytest.fixture(scope="module")
def tokenizer(trained: tuple[UniTok, Mapping[str, JSON]]) -> UniTok:
    return trained[0]


@pytest.fixture(scope="module")
def facts(trained: tuple[UniTok, Mapping[str, JSON]]) -> Mapping[str, JSON]:
    return trained[1]


VARIANTS: list[dict[str, Any]] = [
    {"expert_token": "last"},
    {"expert_token": "first"},
    {"expert_token": "last", "routed": 2},
    {"expert_token": "first", "routed": 2, "combination": "residual", "router_input": "vector"},
    {"combination": "routed-first", "experts": {"toys": 2, "office": 1, "games": 1}},
    {"shared": False, "experts": 2, "renormalise": True, "routed": 2},
    {"expert_token": "none"},
    {"expert_token": "none", "routed": 2, "combination": "residual", "router_input": "vector"},
]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def variant(request: pytest.FixtureRequest) -> UniTok:
    return fit(**{"epochs": 3, "warmup_steps": 20, **request.param})[0]


# --- training -----------------------------------------------------------------------------------------------


def test_every_epoch_has_a_finite_value_and_learning_helps(facts: Mapping[str, JSON]) -> None:
    curves = ("total", "reconstruction", "quantization", "calibration", "balancing", "supervision")
    for name in (*curves, "utilisation"):
        assert len(facts[name]) == 40
        assert np.isfinite(facts[name]).all()
    assert facts["total"][-1] < facts["total"][0]
    assert facts["evaluated_at"] == [15, 30, 40]
    assert all(len(values) == 3 for values in facts["information"].values())
    assert len(facts["information_variance"]) == 3
    assert max(facts["errors"].values()) < 0.5
    assert (
        facts["parameters"] == 2 * (10 * 16 + 16 * 6) + 16 + 6 + 16 + 10 + 4 * LEVELS * SIZE * 6 + 6 * 3 + 3
    )


@pytest.mark.parametrize("combination", ["sum", "residual"])
@pytest.mark.parametrize("balance", ["proportional", "equal"])
def test_a_principal_start_projects_on_the_leading_axes(combination: str, balance: str) -> None:
    """Before any step, experts without error would give the best linear reconstruction of rank d, of domains
    weighed as `balance` says."""
    still = {"epochs": 1, "learning_rate": 1e-9, "warmup_steps": 0, "hidden": [], "latent": 4}
    found, _ = fit(autoencoder_init="principal", combination=combination, balance=balance, **still)
    net, normaliser = found.network, found.normaliser
    assert net is not None
    assert normaliser is not None
    mass = np.concatenate(
        [np.full(len(d.vectors), 1.0 if balance == "proportional" else 1 / len(d.vectors)) for d in DOMAINS]
    )
    x = normaliser(torch.from_numpy(ALL)).double().numpy()
    mean = np.average(x, axis=0, weights=mass)
    axes = np.linalg.svd(np.sqrt(mass)[:, None] * (x - mean), full_matrices=False)[2][:4]
    wanted = mean + (x - mean) @ axes.T @ axes
    with torch.no_grad():
        z = net.encoder(torch.from_numpy(x).float())
        exact = z * (2 if combination == "sum" else 1)
        np.testing.assert_allclose(net.decoder(exact).numpy(), wanted, atol=1e-4)


def test_calibration_is_alive_in_training(facts: Mapping[str, JSON]) -> None:
    """Defect 1: finite, never 0, and it changes what is learned."""
    assert max(facts["calibration"]) < -1e-3
    without, _ = fit(calibration=0.0, epochs=2)
    heavy, _ = fit(calibration=0.5, epochs=2)
    assert without.network is not None
    assert heavy.network is not None
    moved = without.network.encoder[0].weight - heavy.network.encoder[0].weight
    assert float(moved.detach().abs().max()) > 1e-5


def test_calibration_weight_makes_information_rise_and_even_out() -> None:
    """The purpose of L_MI: more and more even information than without it."""
    loss = {}
    for weight in (0.0, 3.0):
        found = fit(calibration=weight, supervision=0.0, normalised_information=True)[1]
        last = [values[-1] for values in found["information"].values()]
        loss[weight] = float(np.var(last) - np.mean(last))
    assert loss[3.0] < loss[0.0]


def test_one_domain_leaves_minus_beta_times_its_information() -> None:
    """Invariant 7: K = 1."""
    found = fit(DOMAINS[:1], epochs=4, beta=2.0)[1]
    assert found["information_variance"] == [0.0]
    assert found["calibration"][-1] == pytest.approx(-2 * found["information"]["toys"][-1], rel=0.15)
    assert found["supervision"] == [0.0] * 4


def test_no_expert_is_left_without_items(tokenizer: UniTok) -> None:
    """Defect 5: on well-separated domains every expert serves the domain that it starts from."""
    for number, domain in enumerate(DOMAINS):
        chosen = tokenizer.encode(domain.vectors)[:, LEVELS]
        assert np.mean(chosen == number) > 0.95


def test_the_start_alone_ties_experts_to_domains() -> None:
    """Defect 5, before any step has learned anything: the router starts as a discriminant of the domains."""
    early, _ = fit(epochs=1, learning_rate=1e-6, warmup_steps=0, supervision=0.0, calibration=0.0)
    for number, domain in enumerate(DOMAINS):
        assert np.mean(early.encode(domain.vectors)[:, LEVELS] == number) > 0.9


@pytest.mark.parametrize("combination", ["sum", "residual"])
def test_codebooks_start_among_what_their_own_domain_leaves_to_quantize(combination: str) -> None:
    """Each routed expert from its domain, the shared one from the union."""
    start = {"epochs": 1, "learning_rate": 1e-9, "warmup_steps": 0, "revive_until": 0.0}
    net = (found := fit(combination=combination, **start)[0]).network
    assert net is not None
    assert net.shared is not None
    targets = [net.target(found.latents(domain.vectors)) for domain in DOMAINS]
    books = net.routed.weight.detach()[:, 0]
    for number, target in enumerate(targets):
        errors = [float(torch.cdist(target, book).amin(1).square().mean()) for book in books]
        assert errors.index(min(errors)) == number
        assert sorted(errors)[1] > 1.2 * min(errors)
    owner = np.repeat(np.arange(3), [len(domain.vectors) for domain in DOMAINS])
    union = torch.cdist(net.shared.weight.detach()[0, 0], found.latents(ALL)).argmin(1)
    assert set(owner[union.numpy()].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("experts", [None, 4])
def test_large_domains_are_placed_by_a_sample_of_their_own_items(
    experts: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `PLACING_ITEMS` items a code reach the codebooks, and these still serve their domains."""
    seen: list[int] = []
    place = ExpertCodebooks.initialise

    def watched(self: ExpertCodebooks, expert: int, vectors: torch.Tensor, *rest: Any, **more: Any) -> None:
        seen.append(len(vectors))
        place(self, expert, vectors, *rest, **more)

    monkeypatch.setattr(ExpertCodebooks, "initialise", watched)
    monkeypatch.setattr(unitok_training, "PLACING_ITEMS", 5)
    found, _ = fit(experts=experts)
    shared, *routed = seen
    assert shared == 5 * SIZE
    assert len(routed) == (experts or len(DOMAINS))
    assert sum(routed) == 5 * SIZE * len(routed)  # experts of one domain share its sample among them
    owners = found.options.owners([d.name for d in DOMAINS], [len(d.vectors) for d in DOMAINS])
    for number, domain in enumerate(DOMAINS):
        own = [expert for expert, served in enumerate(owners) if number in served]
        assert np.isin(found.encode(domain.vectors)[:, LEVELS], own).mean() > 0.95


def conditional_entropy(codes: Codes, level: int) -> float:
    """H(c_level | codes before) in nats, counted."""
    whole = Counter(tuple(row) for row in codes[:, : level + 1].tolist())
    before = Counter(tuple(row) for row in codes[:, :level].tolist())
    return sum(count / len(codes) * math.log(before[row[:-1]] / count) for row, count in whole.items())


@pytest.mark.parametrize("changes", [{}, {"combination": "residual"}, {"combination": "routed-first"}])
def test_no_level_is_a_function_of_its_prefix(changes: dict[str, Any], tokenizer: UniTok) -> None:
    """Defect 7: in every domain every code adds something to the expert and the codes before it, and few
    items collide before any conflict handling."""
    found = fit(**changes)[0] if changes else tokenizer
    for domain in DOMAINS:
        chosen = found.encode(domain.vectors)[:, found.order]
        for step in range(1, LEVELS + 1):
            assert conditional_entropy(chosen, step) > 0.2, (domain.name, step)
        assert len(np.unique(chosen, axis=0)) > 0.5 * len(chosen)


# --- codes of the experts -----------------------------------------------------------------------------------


def names_in(tokenizer: UniTok) -> tuple[int, ...]:
    """Positions of an identifier at which an expert is named."""
    return tokenizer.order[: 0 if tokenizer.options.expert_token == "none" else tokenizer.options.routed]


def test_exported_codes_rebuild_the_exported_experts_vector(variant: UniTok) -> None:
    """Defects 3 and 4: codes and expert of the identifier are those of the forward pass, and their code
    vectors add up to what the strongest expert gave to z^."""
    codes = variant.encode(ALL)
    net, normaliser = variant.network, variant.normaliser
    assert net is not None
    assert normaliser is not None
    with torch.no_grad():
        x = normaliser(torch.from_numpy(ALL))
        z = net.encoder(x)
        gates = net.gates(x, z)
        mixed = net.mix(z, gates)
        chosen = torch.from_numpy(codes[:, variant.order].astype(np.int64))
        kept, names = variant.options.routed, len(names_in(variant))
        assert torch.equal(chosen[:, :names], mixed.experts[:, :names])
        assert torch.equal(chosen[:, names:], mixed.codes)
        total = mixed.shared.clone()
        weights = gates.gather(1, mixed.experts)
        weights = weights / weights.sum(1, keepdim=True) if variant.options.renormalise else weights
        for place in range(kept):
            of_expert = net.routed(net.target(z), mixed.experts[:, place])
            total += weights[:, place, None] * net.routed.sums(mixed.experts[:, place], of_expert.codes)
        torch.testing.assert_close(total, mixed.vectors, rtol=1e-4, atol=1e-4)


def test_distances_lead_to_the_codes(variant: UniTok) -> None:
    codes = variant.encode(ALL)
    for step, position in enumerate(variant.order):
        distances = variant.distances(ALL, codes[:, variant.order[:step]])
        np.testing.assert_array_equal(distances.argmin(1), codes[:, position])


def test_a_second_expert_is_kept_in_order_however_sure_the_router_is() -> None:
    found, _ = fit(routed=3, router_input="vector", epochs=1, warmup_steps=0)
    assert found.network is not None
    found.network.router.weight.data.zero_()
    found.network.router.bias.data.copy_(torch.tensor([0.0, 25.0, 60.0]))
    assert found.encode(ALL[:5])[:, LEVELS:].tolist() == [[2, 1, 0]] * 5
    test_distances_lead_to_the_codes(found)


def test_kept_experts_are_different_and_the_strongest_come_first(variant: UniTok) -> None:
    gates = variant.routing(ALL)
    np.testing.assert_allclose(gates.sum(1), 1, atol=1e-5)
    assert (gates >= 0).all()
    if variant.expert_position is None:
        assert not names_in(variant)
        return
    names = variant.encode(ALL)[:, names_in(variant)]
    assert variant.expert_position == variant.order[0]
    weights = np.take_along_axis(gates, names.astype(np.int64), 1)
    np.testing.assert_allclose(weights, -np.sort(-gates, 1)[:, : variant.options.routed], rtol=1e-4)
    assert all(len(set(row)) == len(row) for row in names.tolist())


def test_decoding_is_about_as_good_as_the_network_with_all_it_knows(tokenizer: UniTok) -> None:
    spread = np.square(ALL - ALL.mean(0)).sum()
    assert np.square(ALL - tokenizer.decode(tokenizer.encode(ALL))).sum() < 0.2 * spread


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("routed", [1, 2])
def test_decoding_keeps_the_scale_that_the_decoder_learned(routed: int, renormalise: bool) -> None:
    """Without a shared expert and with gates near 1/2, z^ is the weighted sum of N experts. The identifier
    has the codes of the first: decoded, they must stand for all N, with the weights as they were used."""
    generator = np.random.default_rng(0)
    blobs = [of(name, generator.normal(size=(200, WIDTH)).astype(np.float32)) for name in ("a", "b")]
    unsure = {"router_init": "random", "supervision": 0.0, "load_balancing": 0.05, "shared": False}
    found, known = fit(blobs, routed=routed, renormalise=renormalise, **unsure)
    vectors = np.concatenate([blob.vectors for blob in blobs])
    assert found.routing(vectors).max(1).mean() < 0.95
    spread = np.square(vectors - vectors.mean(0)).sum()
    error = np.square(vectors - found.decode(found.encode(vectors))).sum() / spread
    with_all = np.mean(list(known["errors"].values()))
    assert error < (1.02 if routed == 1 else 1.3) * with_all


# --- identifiers --------------------------------------------------------------------------------------------


def identifiers(tokenizer: UniTok, vectors: Floats) -> Codes:
    return resolve(tokenizer, vectors, tokenizer.encode(vectors))


def test_identifiers_have_l_codes_and_the_names_and_are_unique(variant: UniTok) -> None:
    """Invariant 9, before and after conflict handling."""
    o, table = variant.options, IdentifierTable(variant.space)
    for domain in DOMAINS:
        codes = variant.encode(domain.vectors)
        assert codes.shape == (len(domain.vectors), o.levels + len(names_in(variant)))
        found = resolve(variant, domain.vectors, codes)
        assert len(np.unique(found, axis=0)) == len(found)
        table = table.add(domain.name, found, "v")  # refuses codes out of range and double owners
        alone = np.unique(codes, axis=0, return_counts=True, return_inverse=True)
        single = alone[2][alone[1].ravel()] == 1
        np.testing.assert_array_equal(found[single], codes[single])


def test_tokens_of_levels_and_of_experts_are_disjoint(variant: UniTok) -> None:
    """Invariant 9: L ranges for the codes and one for all experts that are named."""
    vocabulary, o = Vocabulary(variant.space), variant.options
    names = set(names_in(variant))
    ranges = [set(vocabulary.level_range(p)) for p in range(variant.space.levels)]
    assert len({frozenset(ranges[p]) for p in names}) == bool(names)
    assert all(len(ranges[p]) == (variant.experts if p in names else SIZE) for p in range(len(ranges)))
    assert len(set.union(*ranges)) == o.levels * SIZE + bool(names) * variant.experts
    codes = variant.encode(ALL)
    np.testing.assert_array_equal(vocabulary.codes(vocabulary.tokens(codes)), codes)


def test_both_orders_name_the_same_codes() -> None:
    last, first = (fit(epochs=2, routed=2, expert_token=token)[0] for token in ("last", "first"))
    one, other = last.encode(ALL), first.encode(ALL)
    np.testing.assert_array_equal(one[:, [3, 4, 0, 1, 2]], other)
    np.testing.assert_array_equal(last.decode(one), first.decode(other))
    vectors, crowd = DOMAINS[2].vectors, np.repeat(DOMAINS[2].vectors[:1], 40, axis=0)
    for rows in (vectors, crowd):
        np.testing.assert_array_equal(identifiers(last, rows)[:, [3, 4, 0, 1, 2]], identifiers(first, rows))


def test_identifiers_of_every_kind_are_decoded_by_the_trie(variant: UniTok) -> None:
    """Every item comes out of the search, once, with its own identifier; the fast search finds what the slow
    one finds."""
    vectors = DOMAINS[2].vectors[:30]
    vocabulary = Vocabulary(variant.space)
    tokens = vocabulary.tokens(identifiers(variant, vectors))
    trie = Trie(tokens)
    np.testing.assert_array_equal(trie.item_of(tokens), np.arange(30))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = T5Options(layers=1, hidden=8, feed_forward=8, heads=1, head_width=8)
        model = T5(vocabulary.size, sizes).eval()
    history = tokens[3].tolist()
    everything = search_all(model, [history], trie, beam=30, k=30).items[0].tolist()
    assert sorted(everything) == list(range(30))
    found = search_all(model, [history], trie, beam=4, k=4)
    slow = reference_beam_search(model, history, [tuple(row) for row in tokens.tolist()], 4, 4)
    assert found.items[0].tolist() == [item for item, _ in slow]


@pytest.mark.parametrize("token", ["last", "first"])
def test_conflicts_move_the_last_code_first_and_the_expert_last(token: str) -> None:
    """Identical vectors fill the places nearest to their codes: T under all but the last code, T^2, T^3 under
    the expert, and only then another expert."""
    found, _ = fit(epochs=2, expert_token=token)
    expert = found.order[0]
    positions = [p for p in range(LEVELS + 1) if p != expert]
    for count, fixed in ((SIZE, [expert, *positions[:2]]), (60, [expert, positions[0]]), (300, [expert])):
        same = np.repeat(DOMAINS[0].vectors[5:6], count, axis=0)
        codes = found.encode(same)
        result = identifiers(found, same)
        assert len(np.unique(codes, axis=0)) == 1
        assert len(np.unique(result, axis=0)) == count
        np.testing.assert_array_equal(result[:, fixed], codes[:, fixed])
    same = np.repeat(DOMAINS[0].vectors[5:6], SIZE**LEVELS + 20, axis=0)
    result = identifiers(found, same)
    assert len(np.unique(result, axis=0)) == SIZE**LEVELS + 20
    assert (result[:, expert] == codes[0, expert]).sum() == SIZE**LEVELS


def test_items_that_are_added_leave_identifiers_as_they_are(variant: UniTok) -> None:
    old, new = DOMAINS[0].vectors[:100], np.concatenate([DOMAINS[0].vectors[100:], DOMAINS[0].vectors[:30]])
    reserved = identifiers(variant, old)
    before = reserved.copy()
    added = resolve(variant, new, variant.encode(new), reserved=reserved)
    np.testing.assert_array_equal(reserved, before)
    assert len(np.unique(np.concatenate([reserved, added]), axis=0)) == len(old) + len(new)
    table = IdentifierTable(variant.space).add("toys", reserved, "v1").add("toys", added, "v2")
    np.testing.assert_array_equal(table.of("toys")[:100], before)


# --- domains that it never saw ------------------------------------------------------------------------------


def test_an_unseen_domain_changes_nothing_and_needs_no_label(variant: UniTok, tmp_path: Path) -> None:
    """Invariant 10: every tensor, counts of use included, is bit-identical afterwards."""
    net = variant.network
    assert net is not None
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    codes = variant.encode(UNSEEN)
    identifiers(variant, UNSEEN)
    variant.decode(codes)
    variant.routing(UNSEEN)
    variant.latents(UNSEEN)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not net.training
    assert (codes < np.array(variant.space.sizes)).all()
    np.testing.assert_array_equal(variant.encode(UNSEEN), codes)


def test_codes_of_an_unseen_domain_do_not_depend_on_the_batch(variant: UniTok) -> None:
    whole = variant.encode(UNSEEN)
    order = np.random.default_rng(0).permutation(len(UNSEEN))
    np.testing.assert_array_equal(variant.encode(UNSEEN[order]), whole[order])
    np.testing.assert_array_equal(variant.encode(np.concatenate([ALL, UNSEEN]))[len(ALL) :], whole)
    for row in (0, 41, 89):
        np.testing.assert_array_equal(variant.encode(UNSEEN[row : row + 1]), whole[row : row + 1])


def test_the_network_sees_blocks_of_one_shape_only(variant: UniTok) -> None:
    """Why no batch can matter: a product of another shape may round differently."""
    shapes: set[tuple[int, ...]] = set()
    assert variant.network is not None
    handle = variant.network.encoder.register_forward_pre_hook(lambda _, given: shapes.add(given[0].shape))
    try:
        for rows in (ALL, UNSEEN, UNSEEN[:1], UNSEEN[:0]):
            codes = variant.encode(rows)
            variant.distances(rows, codes[:, variant.order[:2]])
            variant.latents(rows)
            variant.routing(rows)
    finally:
        handle.remove()
    assert len(shapes) == 1


def test_save_and_load_keep_every_variant(variant: UniTok, tmp_path: Path) -> None:
    variant.save(tmp_path)
    loaded = UniTok.load(tmp_path)
    assert loaded.options == variant.options
    assert (loaded.space, loaded.order, loaded.experts) == (variant.space, variant.order, variant.experts)
    codes = variant.encode(UNSEEN)
    np.testing.assert_array_equal(loaded.encode(UNSEEN), codes)
    np.testing.assert_array_equal(loaded.decode(codes), variant.decode(codes))
    np.testing.assert_array_equal(loaded.routing(UNSEEN), variant.routing(UNSEEN))
    torch.testing.assert_close(loaded.latents(UNSEEN), variant.latents(UNSEEN), rtol=0, atol=0)
    assert loaded.training == variant.training


def test_latents_lead_to_the_codes_of_the_part(tokenizer: UniTok) -> None:
    """What adaptation builds on: codebooks and expert of the part encode the domain as `encode` does."""
    from catalex.quantize import residual_encode

    latents = tokenizer.latents(DOMAINS[1].vectors)
    part = tokenizer.part_for(latents)
    codes = tokenizer.encode(DOMAINS[1].vectors)
    assert part.fixed == (None, None, None, 1)
    rows = codes[:, LEVELS] == 1
    np.testing.assert_array_equal(
        residual_encode(latents, part.codebooks).numpy()[rows], codes[rows, :LEVELS]
    )
    with pytest.raises(CatalexError, match="combination 'residual'"):
        fit(epochs=1, warmup_steps=0, combination="residual")[0].part_for(latents)


# --- numbers of experts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "count"), [(1, 1), (2, 2), (5, 5), ({"toys": 1, "office": 3, "games": 1}, 5)]
)
def test_any_number_of_experts_serves_any_number_of_domains(experts: Any, count: int) -> None:
    """Defect 6: nothing is wired to ten domains."""
    found, _ = fit(experts=experts, epochs=2)
    codes = found.encode(ALL)
    assert found.space.sizes[-1] == found.experts == count
    assert len(np.unique(codes[:, LEVELS])) == count
    assert found.routing(ALL).shape == (len(ALL), count)


def test_domains_may_come_in_any_order() -> None:
    """Experts follow their domains; names have no meaning."""
    turned, _ = fit([DOMAINS[2], DOMAINS[0], DOMAINS[1]])
    for number, domain in enumerate([DOMAINS[2], DOMAINS[0], DOMAINS[1]]):
        assert np.mean(turned.encode(domain.vectors)[:, LEVELS] == number) > 0.95


# --- input that is odd or bad -------------------------------------------------------------------------------


@pytest.mark.parametrize("combination", ["sum", "residual"])
@pytest.mark.parametrize(
    "vectors",
    [
        clustered("tiny", 5, 9).vectors,
        clustered("one", 1, 9).vectors,
        np.full((20, WIDTH), 3.0, np.float32),
        np.zeros((20, WIDTH), np.float32),
    ],
    ids=["fewer items than codes", "one item", "identical items", "zero vectors"],
)
def test_an_odd_domain_beside_others_is_served(vectors: Floats, combination: str) -> None:
    """Documented: such a domain trains with the others, gets finite codes and unique identifiers, and with
    fewer than 8 items no information is reported for it."""
    odd = of("odd", vectors)
    found, known = fit([*DOMAINS, odd], epochs=3, warmup_steps=20, combination=combination)
    assert np.isfinite(known["total"]).all()
    assert (known["information"]["odd"] == [None]) == (len(vectors) < 8)
    assert np.isfinite(known["information_variance"]).all()
    assert np.isfinite(known["errors"]["odd"])
    codes = found.encode(vectors)
    assert np.isfinite(found.decode(codes)).all()
    assert len(np.unique(identifiers(found, vectors), axis=0)) == len(vectors)
    assert found.network is not None
    assert all(tensor.isfinite().all() for tensor in found.network.state_dict().values())


def test_a_domain_of_one_item_does_not_enter_the_calibration() -> None:
    """Invariant 6: below 8 items I_k says nothing; the variance is over the domains that have more."""
    pair = [DOMAINS[0], of("one", DOMAINS[1].vectors[:1])]
    found = fit(pair, epochs=1, learning_rate=1e-9, warmup_steps=0, beta=0.0, calibration=1.0)[1]
    assert found["calibration"] == pytest.approx([0.0], abs=1e-6)


def test_information_is_compared_at_equal_n() -> None:
    """The variance that is reported would otherwise measure sizes: HSIC grows as n falls."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(600, WIDTH)).astype(np.float32)
    large, small = of("large", rows), of("small", rows[:24])
    settings = {"normalised_information": False, "epochs": 1, "warmup_steps": 0, "learning_rate": 1e-9}
    known = fit([large, small], **settings)[1]
    values = {name: found[-1] for name, found in known["information"].items()}
    assert values["small"] == pytest.approx(values["large"], rel=0.15)


def test_bad_vectors_are_refused_in_one_sentence(tokenizer: UniTok) -> None:
    broken = UNSEEN.copy()
    broken[4, 2] = np.nan
    with pytest.raises(CatalexError, match=r"row 4: a content vector holds NaN or infinite values"):
        tokenizer.encode(broken)
    with pytest.raises(CatalexError, match=r"domain 'bad', row 4: .*NaN"):
        make().fit([*DOMAINS, of("bad", broken)], seed=0, device="cpu")
    for call in (tokenizer.encode, tokenizer.latents, tokenizer.routing):
        with pytest.raises(CatalexError, match=r"found \(90, 7\); allowed: \(items, 10\)"):
            call(UNSEEN[:, :7])
    with pytest.raises(CatalexError, match=r"fewer items than codes in a codebook \(found 5; .* 8 items\)"):
        make().fit([of("tiny", UNSEEN[:5])], seed=0, device="cpu")


def test_a_latent_wider_than_the_vectors_is_refused_where_it_cannot_start() -> None:
    """There are no more principal axes than columns."""
    with pytest.raises(CatalexError, match=r"latent.*found 11"):
        make(hidden=[], autoencoder_init="principal", latent=11).fit(DOMAINS, seed=0, device="cpu")


def test_experts_for_an_unknown_domain_are_refused_before_any_work() -> None:
    with pytest.raises(CatalexError, match=r"unknown domain 'offise'.*Did you mean 'office'\?"):
        make(experts={"toys": 1, "offise": 1, "games": 1}).fit(DOMAINS, seed=0, device="cpu")
    with pytest.raises(CatalexError, match=r"tokenizer\.routed: more experts.*found 4; allowed: 1 to 3"):
        make(routed=4).fit(DOMAINS, seed=0, device="cpu")
