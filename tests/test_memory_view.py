"""The memory as numbers, cells and pictures: against closed forms, and readable by strict readers."""

from __future__ import annotations

import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import stored

from deltamem_cli.memory_view import cells, metrics, picture
from deltamem_cli.pictures.png import png
from deltamem_cli.pictures.svg import svg


def state(*layers: np.ndarray) -> np.ndarray:
    return np.stack([layer.reshape(1, *layer.shape) if layer.ndim == 2 else layer for layer in layers]).astype("f4")


def test_effective_rank_is_the_rank_of_equal_singular_values() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    flat = np.diag([3.0, 3.0, 3.0, 0, 0, 0, 0, 0])
    one = np.outer(np.arange(8.0), np.ones(8))
    found = metrics.effective_ranks(state(np.eye(8), rotation @ flat, one, np.zeros((8, 8))))
    assert np.allclose(found, [8, 3, 1, 0], atol=1e-5)


def test_effective_rank_is_exp_of_the_entropy_of_the_shares() -> None:
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    found = metrics.effective_ranks(state(np.diag(7 * shares)))[0]
    assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_heads_of_a_layer_count_together() -> None:
    heads = np.stack([np.eye(4), np.eye(4)])
    assert metrics.effective_ranks(state(heads))[0] == pytest.approx(8)
    assert metrics.norms(state(heads))[0] == pytest.approx(8**0.5)


def test_change_is_measured_against_the_state_before_and_against_zero_at_the_beginning() -> None:
    first, second = state(np.eye(8)), state(3 * np.eye(8))
    assert metrics.per_layer(second, [4], first)[0].change == pytest.approx(2 * 8**0.5)
    only = metrics.per_layer(first, [4], None)[0]
    assert only.change == only.norm and only.layer == 4
    assert metrics.per_layer(first, [4], state(np.eye(4)))[0].change == only.norm, "another shape counts as none"


def test_course_follows_norm_and_change_over_the_turns() -> None:
    snapshots = [stored.snapshot(seed) for seed in (1, 2, 3)]
    steps = metrics.course(snapshots)
    for before, after, step in zip([None, *snapshots], snapshots, steps, strict=False):
        assert step.norm == pytest.approx(np.linalg.norm(after.state.ravel()), rel=1e-6)
        moved = after.state - (before.state if before else 0)
        assert step.change == pytest.approx(np.linalg.norm(moved.ravel()), rel=1e-6)
        assert step.norm == pytest.approx(np.linalg.norm(step.layer_norms), rel=1e-6)


def test_levels_halve_and_keep_the_sign() -> None:
    values = np.array([[1.0, -1.0, 0.5, -0.5], [0.49, 0.25, -0.13, 0.125], [0.1, 0.0625, -0.07, 0.06], [0, 0, 0, 0]])
    expected = [[4, -4, 4, -4], [3, 3, -2, 2], [1, 1, -1, 0], [0, 0, 0, 0]]
    assert cells.levels(values * 12, 12.0).tolist() == expected
    assert not cells.levels(np.zeros((8, 8)), 0.0).any()


@pytest.mark.parametrize("heads, rank, n", [(1, 8, 8), (4, 8, 8), (1, 4, 4), (1, 1, 1), (2, 64, 8), (1, 11, 8)])
def test_grid_shows_the_largest_magnitude_of_what_shares_a_cell(heads: int, rank: int, n: int) -> None:
    layer = np.random.default_rng(1).uniform(-1, 1, (heads, rank, rank)).astype("f4")
    layer[heads - 1, rank - 1, 0] = -9
    grid = cells.grid(layer)
    assert grid.shape == (n, n) and grid[n - 1, 0] == -9
    assert set(np.abs(grid).ravel().tolist()) <= set(np.abs(layer).ravel().tolist())
    if heads == 1 and rank == n:
        assert np.array_equal(grid, layer[0])


def drawn(n_layers: int = 30, n_turns: int = 4) -> picture.Picture:
    snapshots = [stored.snapshot(seed, list(range(n_layers))) for seed in range(n_turns)]
    last = snapshots[-1]
    layers = metrics.per_layer(last.state, last.layers, None)
    return picture.draw('a <b> & "c" \x1b[1m \x00', last.state, layers, metrics.course(snapshots))


@pytest.mark.parametrize("n_layers, n_turns", [(1, 1), (30, 4), (36, 40), (7, 2)])
def test_picture_has_every_cell_of_every_layer_and_a_line_per_layer_inside_its_frame(
    n_layers: int, n_turns: int
) -> None:
    made = drawn(n_layers, n_turns)
    rects = [shape for shape in made.shapes if isinstance(shape, picture.Rect)]
    lines = [shape for shape in made.shapes if isinstance(shape, picture.Line)]
    assert len(rects) == n_layers * 64 and len(lines) == n_layers + 1
    assert all(r.x >= 0 and r.x + r.width <= made.width and r.y >= 0 and r.y + r.height <= made.height for r in rects)
    assert all(len(set(line.points)) > 1 for line in lines), "a line of one point cannot be seen"
    assert all(0 <= x <= made.width and 0 <= y <= made.height for line in lines for x, y in line.points)


def test_svg_is_well_formed_whatever_the_title_is() -> None:
    made = drawn()
    root = ElementTree.fromstring(svg(made))
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any('a <b> & "c"' in text for text in texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}rect"))) == 30 * 64 + 1


def pixels(data: bytes) -> np.ndarray:
    """A strict reading of an 8-bit RGB PNG without filters."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(name + body)
        chunks[name] = body
        at += 12 + length
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0] and list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_png_shows_the_same_cells_in_the_same_colours() -> None:
    made = drawn()
    canvas = pixels(png(made))
    assert canvas.shape == (made.height, made.width, 3)
    for rect in (shape for shape in made.shapes if isinstance(shape, picture.Rect)):
        assert (canvas[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width] == rect.colour).all()
    assert (canvas[0, 0] == 255).all()


def test_png_font_draws_a_letter_as_its_rows_say() -> None:
    made = picture.Picture(20, 20, [picture.Label(4, 14, "L", (0, 0, 0))])
    black = (pixels(png(made))[4:14:2, 4:10:2] == 0).all(axis=2)
    assert ["".join(".#"[int(dot)] for dot in row) for row in black] == ["#..", "#..", "#..", "#..", "###"]


def test_empty_memory_can_be_drawn() -> None:
    nothing = np.zeros((2, 1, 8, 8), dtype="f4")
    made = picture.draw("empty", nothing, metrics.per_layer(nothing, [0, 1], None), [])
    assert {shape.colour for shape in made.shapes if isinstance(shape, picture.Rect)} == {picture.EMPTY}
    svg(made), png(made)
