"""Prompt maps against brute force: loops over voxels and a plain Dijkstra."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
import torch
from famsam.model import prompt_maps
from famsam.model.prompt_maps import (
    FAR,
    NEAR_AND_ALIKE,
    NEGATIVE,
    POSITIVE,
    SAME_REGION,
    PathMemory,
    StepCost,
    ball_map,
    ball_map_at_once,
    box_map,
    box_map_at_once,
    distance_map,
    gather_points,
    geodesic_distance,
    intensity_likeness,
    intensity_likeness_at_once,
    keep_clicks,
    one_way,
    path_costs,
    point_masks,
    restrained,
    restrained_at_once,
    running_minimum,
)

SIZE = (6, 7, 5)


def random_image(seed, size=SIZE, batch=1):
    return torch.rand(batch, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def points(*rows):
    return torch.tensor([list(rows)], dtype=torch.float32)


def chosen(*flags):
    return torch.tensor([list(flags)], dtype=torch.bool)


def dijkstra(image, sources, edge_weight):
    """Exact cost of the cheapest axis-aligned path; a step costs 1 + edge_weight * |dI|."""
    cost = np.full(image.shape, np.inf)
    queue = []
    for source in sources:
        cost[source] = 0.0
        heapq.heappush(queue, (0.0, source))
    while queue:
        reached, at = heapq.heappop(queue)
        if reached > cost[at]:
            continue
        for axis in range(3):
            for step in (-1, 1):
                to = list(at)
                to[axis] += step
                if not 0 <= to[axis] < image.shape[axis]:
                    continue
                to = tuple(to)
                further = reached + 1 + edge_weight * abs(image[to] - image[at])
                if further < cost[to]:
                    cost[to] = further
                    heapq.heappush(queue, (further, to))
    return cost


def distance_from(image, clicks, which, edge_weight=20.0, rounds=3):
    """Geodesic distance for one choice of the clicks, (B, z, y, x)."""
    return geodesic_distance(path_costs(image, StepCost(linear=edge_weight))[None], clicks, which[None], rounds)[0, 0]


def test_which_prompts_are_clicks():
    positive, negative = point_masks(torch.tensor([[1, 0, -1, 2, 3]]))
    assert positive.tolist() == [[True, False, False, False, False]]
    assert negative.tolist() == [[False, True, False, False, False]]


@pytest.mark.parametrize("seed", range(3))
def test_geodesic_distance_equals_dijkstra_with_enough_rounds(seed):
    image = random_image(seed)
    clicks = points((1, 5, 0), (5, 0, 4), (3, 3, 3))
    which = chosen(True, seed > 0, False)
    sources = [(1, 5, 0), (5, 0, 4)][: 1 + (seed > 0)]
    exact = dijkstra(image[0].double().numpy(), sources, 20.0)
    found = distance_from(image, clicks, which, edge_weight=20.0, rounds=60)[0].numpy()
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_few_rounds_give_an_upper_bound_that_falls(rounds):
    image = random_image(7)
    exact = dijkstra(image[0].double().numpy(), [(0, 0, 0)], 20.0)
    found = distance_from(image, points((0, 0, 0)), chosen(True), rounds=rounds)[0].numpy()
    more = distance_from(image, points((0, 0, 0)), chosen(True), rounds=rounds + 1)[0].numpy()
    assert (found >= exact - 1e-3).all()
    assert (more <= found + 1e-3).all()
    assert found[0, 0, 0] == 0


def test_geodesic_distance_in_a_flat_image_is_the_city_block_distance():
    z, y, x = np.indices(SIZE)
    found = distance_from(torch.zeros(1, *SIZE), points((2, 3, 1)), chosen(True), rounds=1)[0].numpy()
    np.testing.assert_allclose(found, abs(z - 2) + abs(y - 3) + abs(x - 1), atol=1e-4)


def test_geodesic_distance_stops_at_a_wall():
    image = torch.zeros(1, 8, 8, 8)
    image[:, :, :, 4] = 2.0
    distance = distance_from(image, points((4, 4, 1)), chosen(True), edge_weight=20.0)[0]
    assert distance[:, :, :4].max() <= 4 + 4 + 3
    assert distance[:, :, 5:].min() >= 80, "up and down the wall is 2 x 20 x 2"
    image[:, 0, :, 4] = 0.0
    around = distance_from(image, points((4, 4, 1)), chosen(True), edge_weight=20.0)[0]
    assert around[4, 4, 6] < 20, "through the gap and back: 4 + 5 + 4 steps"


def test_geodesic_distance_without_a_click_is_far():
    assert (distance_from(random_image(0), points((1, 1, 1)), chosen(False)) == FAR).all()
    clicks = points((1, 1, 1)).repeat(2, 1, 1)
    first, second = distance_from(random_image(0, batch=2), clicks, torch.tensor([[True], [False]]))
    torch.testing.assert_close(second, torch.full(SIZE, FAR), atol=1e-2, rtol=0)
    assert first.max() < 0.5 * FAR


def test_a_click_outside_counts_at_the_nearest_voxel():
    image = random_image(3)
    outside = distance_from(image, points((-4, 9, 2)), chosen(True))
    torch.testing.assert_close(outside, distance_from(image, points((0, 6, 2)), chosen(True)))


def test_ball_map_against_brute_force():
    clicks = [(1.25, 4.5, 0.0), (5.0, 0.5, 3.75), (-2.0, 3.0, 8.0), (2.0, 2.0, 2.0)]
    flags = (True, True, True, False)
    found = ball_map(points(*clicks), chosen(*flags), SIZE)[0].numpy()
    grid = np.stack(np.indices(SIZE), axis=-1)
    nearest = min_over([((grid - click) ** 2).sum(-1) for click, flag in zip(clicks, flags) if flag])
    np.testing.assert_allclose(found, np.exp(-nearest / 9), rtol=1e-4, atol=1e-7)
    assert (ball_map(points((1, 1, 1)), chosen(False), SIZE) == 0).all()


def test_geodesic_distances_of_several_choices_are_those_of_each():
    image, clicks = random_image(8, batch=2), torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2)) * 5
    choices = torch.tensor([[[True, False, True], [False] * 3], [[False, True, False], [True] * 3]])
    together = geodesic_distance(path_costs(image)[None], clicks, choices)[0]
    for found, which in zip(together, choices):
        torch.testing.assert_close(found, distance_from(image, clicks, which))


def test_geodesic_distances_of_several_kinds_are_those_of_each():
    image, clicks = random_image(4), points((1, 2, 3), (4, 0, 1))
    costs = torch.stack([path_costs(image, cost) for cost in (NEAR_AND_ALIKE, SAME_REGION)])
    choices = torch.stack([chosen(True, False), chosen(False, True)])
    together = geodesic_distance(costs, clicks, choices)
    assert together.shape == (2, 2, 1, *SIZE)
    for found, cost in zip(together, costs):
        torch.testing.assert_close(found, geodesic_distance(cost[None], clicks, choices)[0])


@pytest.mark.parametrize("most", [1, 3, 16])
def test_remembered_paths_are_those_computed_anew(most):
    """Clicks added, taken back, moved and repeated: the same to the last bit, whatever is still remembered."""
    generator = torch.Generator().manual_seed(most)
    costs = torch.stack([path_costs(random_image(5), cost) for cost in (NEAR_AND_ALIKE, SAME_REGION)])
    memory = PathMemory(most)
    clicks = torch.rand(1, 6, 3, generator=generator) * 7
    clicks[0, 4] = clicks[0, 1]
    positive = torch.tensor([True, False, True, True, False, True])
    for count in (1, 2, 3, 2, 4, 5, 6, 1, 6):
        moved = clicks[:, :count].clone()
        moved[0, -1] += torch.rand(3, generator=generator) if count == 3 else 0.0
        choices = torch.stack([positive[None, :count], ~positive[None, :count]])
        anew = geodesic_distance(costs, moved, choices)
        anew[:, ~choices.any(2)[:, 0]] = FAR  # where no click is, its rounding differs
        assert torch.equal(memory.distance(costs, moved, choices), anew)
    assert len(memory._kept) <= most


def test_remembered_paths_cost_only_the_new_clicks(monkeypatch):
    costs = path_costs(random_image(6))[None]
    computed = []

    def counted(costs, points, chosen):
        computed.append(chosen.tolist())
        return geodesic_distance(costs, points, chosen)

    monkeypatch.setattr(prompt_maps, "geodesic_distance", counted)
    memory = PathMemory()
    memory.distance(costs, points((1, 1, 1)), torch.stack([chosen(True), chosen(False)]))
    memory.distance(costs, points((1, 1, 1), (3, 3, 3)), torch.stack([chosen(True, False), chosen(False, True)]))
    memory.distance(costs, points((1, 1, 1), (3, 3, 3)), torch.stack([chosen(True, False), chosen(False, True)]))
    memory.distance(costs, points((3, 3, 3), (2, 2, 2)), torch.stack([chosen(False, True), chosen(True, False)]))
    assert computed == [[[[True]]], [[[False, True]]], [[[False, True]]]]


def test_a_noisy_region_is_near_throughout_and_its_neighbour_far():
    generator = torch.Generator().manual_seed(0)
    image = 0.03 * torch.randn(1, 24, 24, 24, generator=generator)
    image[..., 12:] += 0.5
    costs = torch.stack([path_costs(image, cost) for cost in (NEAR_AND_ALIKE, SAME_REGION)])
    near, same = geodesic_distance(costs, points((2, 2, 2)), chosen(True)[None])[:, 0, 0]
    assert same[..., :12].max() < 0.4 * same[..., 12:].min()
    assert near[..., :12].max() > 0.9 * near[..., 12:].min(), "by length and noise alone both are far"


def test_the_cost_of_a_step_is_what_it_says():
    image = torch.tensor([0.0, 0.5, 0.2]).view(1, 1, 1, 3)
    cost = path_costs(image, StepCost(step=0.1, linear=2.0, square=3.0))[0, 2, 0, 0]
    first, second = 0.1 + 2 * 0.5 + 3 * 0.25, 0.1 + 2 * 0.3 + 3 * 0.09
    torch.testing.assert_close(cost, torch.tensor([0.0, first, first + second]))


def test_distance_map_against_brute_force():
    clicks, flags = [(1.25, 4.5, 0.0), (5.0, 0.5, 3.75), (2.0, 2.0, 2.0)], (True, True, False)
    both = torch.cat([points(*clicks)] * 2)
    found = distance_map(both, torch.cat([chosen(*flags), chosen(False, False, False)]), SIZE, reach=3.0).numpy()
    grid = np.stack(np.indices(SIZE), axis=-1)
    nearest = min_over([np.sqrt(((grid - click) ** 2).sum(-1)) for click in clicks[:2]])
    np.testing.assert_allclose(found[0], np.exp(-nearest / 3), rtol=1e-5)
    assert (found[1] == 0).all()


def test_keep_clicks_at_and_beyond_the_border():
    logits = torch.zeros(1, 1, *SIZE)
    kept = keep_clicks(logits, points((-0.4, 6.3, 2.0), (-5.0, -5.0, -5.0)), torch.tensor([[1, 0]]), radius=1.5)
    grid = np.stack(np.indices(SIZE), axis=-1)
    near = ((grid - np.array([-0.4, 6.3, 2.0])) ** 2).sum(-1) <= 1.5**2
    np.testing.assert_array_equal(kept[0, 0].numpy(), np.where(near, 2.0, 0.0))
    assert near.sum() == 5 and (logits == 0).all(), "the given logits stay as they were"


def test_intensity_likeness_against_brute_force():
    image = random_image(1)
    clicks, flags = [(1.4, 4.4, 0.3), (5.0, 0.6, 3.0), (2.0, 2.0, 2.0)], (True, True, False)
    found = intensity_likeness(image, points(*clicks), chosen(*flags), sharpness=2.0)[0].numpy()
    voxels = image[0].numpy()
    expected = min_over([abs(voxels - voxels[at]) for at in ((1, 4, 0), (5, 1, 3))])
    np.testing.assert_allclose(found, np.exp(-2 * expected), atol=1e-6)
    assert (intensity_likeness(image, points((1, 1, 1)), chosen(False)) == 0).all()


def min_over(arrays):
    return np.min(np.stack(arrays), axis=0)


def test_gather_points_takes_the_nearest_voxel():
    features = random_image(2, batch=3)[None]  # (1, 3, z, y, x)
    found = gather_points(features, points((1.4, 4.6, 0.0), (99.0, -7.0, 2.0)))
    torch.testing.assert_close(found[0, 0], features[0, :, 1, 5, 0])
    torch.testing.assert_close(found[0, 1], features[0, :, 5, 0, 2])


def test_box_map_covers_every_voxel_that_the_box_touches():
    labels = torch.tensor([[2, 3, 1]])
    found = box_map(points((1.2, 2.0, -3.0), (3.0, 4.5, 2.0), (5, 5, 5)), labels, SIZE)[0]
    expected = torch.zeros(SIZE)
    expected[1:4, 2:6, 0:3] = 1
    torch.testing.assert_close(found, expected)


def test_box_map_takes_several_boxes_and_items_without_one():
    corners = points((0, 0, 0), (1, 1, 1), (4, 5, 3), (5, 6, 4)).repeat(2, 1, 1)
    found = box_map(corners, torch.tensor([[2, 3, 2, 3], [-1, -1, -1, -1]]), SIZE)
    assert found[0].sum() == 16 and found[0, 5, 6, 4] == 1 and found[1].sum() == 0
    assert box_map(corners, torch.tensor([[1, 0, 1, 1]] * 2), SIZE).sum() == 0


@pytest.mark.parametrize("label, sign", [(1, 1), (0, -1)])
def test_keep_clicks_makes_a_click_hold_and_leaves_the_rest(label, sign):
    logits = torch.full((1, 2, *SIZE), -9.0 * sign)
    kept = keep_clicks(logits, points((2, 3, 1)), torch.tensor([[label]]))
    changed = {(2, 3, 1), (1, 3, 1), (3, 3, 1), (2, 2, 1), (2, 4, 1), (2, 3, 0), (2, 3, 2)}
    for voxel in np.ndindex(*SIZE):
        expected = 2.0 * sign if voxel in changed else -9.0 * sign
        assert kept[0, 0][voxel] == expected and kept[0, 1][voxel] == expected
    certain = torch.full((1, 1, *SIZE), 9.0 * sign)
    torch.testing.assert_close(keep_clicks(certain, points((2, 3, 1)), torch.tensor([[label]])), certain)


def test_keep_clicks_where_both_signs_are_near_the_nearer_decides():
    logits = torch.zeros(1, 1, *SIZE)
    kept = keep_clicks(logits, points((2, 3, 1), (2, 3, 2)), torch.tensor([[1, 0]]))[0, 0]
    assert kept[2, 3, 1] == 2 and kept[2, 3, 2] == -2
    assert kept[2, 3, 0] == 2 and kept[2, 3, 3] == -2
    same = keep_clicks(logits, points((2, 3, 1), (2, 3, 1)), torch.tensor([[1, 0]]))[0, 0]
    assert same[2, 3, 1] == 2, "of two at the same place the positive one holds"


def test_one_way_raises_for_positive_lowers_for_negative_clicks_and_leaves_the_rest():
    generator = torch.Generator().manual_seed(0)
    logits, previous = (torch.randn(4, masks, *SIZE, generator=generator) for masks in (2, 1))
    found = one_way(logits, previous, torch.tensor([1, 0, 3, -1]))
    torch.testing.assert_close(found[0], torch.maximum(logits[0], previous[0]))
    torch.testing.assert_close(found[1], torch.minimum(logits[1], previous[1]))
    torch.testing.assert_close(found[2:], logits[2:], msg="a box's corner or padding says nothing of the direction")


def all_maps(image, clicks, labels):
    positive, negative = point_masks(labels)
    maps = []
    for which in (positive, negative):
        maps.append(ball_map(clicks, which, SIZE))
        maps.append(intensity_likeness(image, clicks, which))
        maps.append(distance_from(image, clicks, which))
    maps.append(box_map(clicks, labels, SIZE))
    maps.append(keep_clicks(image[:, None], clicks, labels)[:, 0])
    return torch.stack(maps, dim=1)


CLICKS = points((1, 5, 0), (5, 0, 4), (0, 1, 2), (2, 3, 4))
LABELS = torch.tensor([[1, 0, 2, 3]])


def test_padding_has_no_effect():
    image = random_image(4)
    padded_points = torch.cat([points((3, 3, 3), (0, 0, 0)), CLICKS, points((0, 0, 0))], dim=1)
    padded_labels = torch.cat([torch.tensor([[-1, -1]]), LABELS, torch.tensor([[-1]])], dim=1)
    torch.testing.assert_close(all_maps(image, padded_points, padded_labels), all_maps(image, CLICKS, LABELS))


def test_batch_items_are_independent():
    images = random_image(5, batch=3)
    clicks = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(1)) * 4
    clicks[:, 3] = clicks[:, 2] + 1
    labels = torch.tensor([[1, 0, 2, 3], [0, 0, -1, -1], [1, 1, 2, 3]])
    together = all_maps(images, clicks, labels)
    for item in range(3):
        alone = all_maps(images[item : item + 1], clicks[item : item + 1], labels[item : item + 1])
        torch.testing.assert_close(together[item : item + 1], alone)


@pytest.mark.parametrize("seed", range(4))
def test_maps_of_all_clicks_at_once_are_those_made_click_by_click(seed):
    """What a GPU computes; the last item has no click, and a box in one case."""
    generator = torch.Generator().manual_seed(seed)
    image = random_image(seed, batch=3)
    clicks = torch.rand(3, 5, 3, generator=generator) * 9 - 1.5
    labels = torch.tensor([[1, 0, 1, -1, 0], [0, 0, 2, 3, 1], [-1] * 5])
    clicks[1, 2] = torch.tensor([1.2, 2.6, 0.4])
    clicks[1, 3] = clicks[1, 2] + torch.tensor([2.0, 0.5, 3.0])
    for which in point_masks(labels):
        for exact, at_once, arguments in (
            (ball_map, ball_map_at_once, (clicks, which, SIZE)),
            (intensity_likeness, intensity_likeness_at_once, (image, clicks, which)),
        ):
            torch.testing.assert_close(at_once(*arguments), exact(*arguments), atol=2e-7, rtol=1e-4)
    assert box_map(clicks, labels, SIZE)[1].any()
    torch.testing.assert_close(box_map_at_once(clicks, labels, SIZE), box_map(clicks, labels, SIZE))


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 32])
def test_running_minimum_is_the_cumulative_one(axis, length):
    shape = [3, 4, 5, 6]
    shape[axis] = length
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = values.cummin(axis).values
    assert torch.equal(running_minimum(values, axis), expected)


ADDS = torch.tensor([POSITIVE])


def test_a_positive_click_adds_the_most_certain_part_of_what_would_be_too_much():
    before = torch.full((1, 1, 24, 24, 24), -4.0)
    before[..., :7, :7, :7] = 4  # 343 voxels
    certain = torch.linspace(5, 0.01, 24)  # ever less along z
    after = before.maximum(certain[:, None, None].expand(24, 24, 24)[None, None])
    at = torch.tensor([[20.0, 12.0, 12.0]])
    found = restrained(after, before, at, ADDS)
    added = (found > 0) & (before <= 0)
    added[0, 0, 19:22, 11:14, 11:14] = False
    assert 0.7 * 686 < added.sum() <= 686 and added[0, 0, 0, 12, 12] and not added[0, 0, 1:].any()
    assert (found[before > 0] == after[before > 0]).all() and found[0, 0, 20, 12, 12] == after[0, 0, 20, 12, 12]


def test_growth_is_free_for_first_masks_for_small_ones_and_where_it_is_moderate():
    at = torch.tensor([[4.0, 4.0, 4.0]])
    empty = torch.full((1, 1, 16, 16, 16), -4.0)
    small, half = empty.clone(), empty.clone()
    small[0, 0, 4, 4, 4] = 4
    half[..., :6] = 4
    for before, added in ((empty, 16), (small, 2), (half, 16)):
        after = before.clone()
        after[0, 0, :added] = 5
        assert torch.equal(restrained(after, before, at, ADDS) > 0, after > 0)


def test_a_positive_click_adds_only_what_is_certain_enough():
    before = torch.full((1, 1, 16, 16, 16), -4.0)
    before[..., :4, :4, :4] = 4
    after = before.clone()
    after[0, 0, 8], after[0, 0, 12] = 1.5, 0.5
    after[0, 0, 0, 0, 0] = 0.5
    at = torch.tensor([[12.0, 8.0, 8.0]])
    assert torch.equal(restrained(after, before, at, ADDS), after), "unless asked for, all that is likely"
    found = restrained(after, before, at, ADDS, least_added=1.0)
    assert (found[0, 0, 8] > 0).all() and found[0, 0, 0, 0, 0] > 0, "what is certain, and what was there"
    beside = torch.zeros(16, 16, dtype=torch.bool)
    beside[7:10, 7:10] = True
    assert torch.equal(found[0, 0, 12] > 0, beside), "and what was clicked on"
    assert torch.equal(restrained(after, before, at, torch.tensor([NEGATIVE]), least_added=1.0), after)


def test_what_a_click_adds_can_be_told_of_all_items_at_once():
    """Leaks that are cut, ones that are not, first masks, clicks at a face, negative clicks and padding."""
    dice = torch.Generator().manual_seed(0)
    before, after = (3 * torch.randn(24, 1, 16, 16, 16, generator=dice) + level for level in (-6.0, 0.0))
    before[:4] = -1
    before[4:8, :, :6] = 2
    at = 15 * torch.rand(24, 3, generator=dice)
    newest = torch.tensor([POSITIVE, POSITIVE, NEGATIVE, POSITIVE, -1, POSITIVE] * 4)
    given = after, before, at, newest, 1.0
    assert torch.equal(restrained_at_once(*given), restrained(*given))
    cut = ((after > 1) & (before <= 0)).flatten(1).sum(1) > 512
    assert cut.any() and (restrained(*given) != after).any()
