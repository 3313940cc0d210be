"""A whole build, far too short to be good, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.zoo import build, items, muon, network, words
from evomerge.zoo.paths import NAMES

pytest.importorskip("sklearn")
pytest.importorskip("peft")

TINY = build.Sizes(base=2, expert=1, adapter=1, mixture=1, items=2)


def test_a_build_makes_every_checkpoint_and_the_card(tmp_path: Path) -> None:
    build.build(tmp_path, sizes=TINY, workers=1, part="pictures")
    for name in NAMES:
        assert (tmp_path / name / "training.json").is_file()
    assert "| full/ocr |" in (tmp_path / "DATA_CARD.md").read_text(encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    stages = []
    build.build(
        tmp_path,
        sizes=TINY,
        progress=lambda stage, *rest: stages.append(stage),
        part="pictures",
    )
    assert set(stages) == {"measure", "card"}
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_fast_forward_equals_the_model() -> None:
    model = network.new_model(3)
    one = items.item("grounding", "train", 0, 4)
    pixels = torch.from_numpy(network.patches(one.image[None]))
    tokens = torch.tensor([words.prompt(one.question)])
    with torch.no_grad():
        fast = network.think(model, network.see(model, pixels), tokens)
        fast = fast @ model.get_input_embeddings().weight.T
        slow = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=(tokens == words.IDS[words.IMAGE]).int(),
            pixel_values=pixels.view(16, 3, 1, 49).repeat(1, 1, 2, 1).view(16, -1),
            image_grid_thw=torch.tensor([[1, 4, 4]]),
        ).logits
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)


def test_muon_steps_have_all_singular_values_about_one() -> None:
    torch.manual_seed(0)
    made = muon.orthogonal(torch.randn(3, 40, 24))
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3
