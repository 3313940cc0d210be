"""Where a merged checkpoint comes from: ``lineage.json`` beside its weights."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from evomerge import __version__
from evomerge.checkpoints.catalog import Contents, fingerprint_of
from evomerge.checkpoints.scan import combine
from evomerge.recipe import Source

if TYPE_CHECKING:
    from evomerge.checkpoints.adapter import Adapter
    from evomerge.checkpoints.open import Checkpoint
    from evomerge.instantiate import Merge
    from evomerge.recipe import Recipe


def lineage_bytes(merge: Merge, digest: str, **more: Any) -> bytes:
    """The sources, the recipe and the result by their hashes, and the version that merged."""
    recipe = merge.recipe
    found = {
        "evomerge": __version__,
        "recipe": recipe_digest(recipe),
        "weights": digest,
        "base": _source(recipe.base, merge.sources.base, merge.sources.contents),
        "experts": {
            name: _source(
                source, merge.sources.experts[name].weights, merge.sources.experts[name].contents
            )
            if isinstance(source, Source)
            else {"recipe": recipe_digest(source.merge)}
            for name, source in recipe.experts.items()
        },
        **more,
    }
    return (json.dumps(found, indent=2) + "\n").encode()


def recipe_digest(recipe: Recipe) -> str:
    """sha256 of the recipe as the text of its file."""
    return hashlib.sha256(recipe.to_yaml().encode()).hexdigest()


def _source(source: Source, weights: Checkpoint | Adapter, contents: Contents) -> dict[str, Any]:
    """Its fingerprint if all of it was read; else the digest of the tensors that were."""
    digests = contents.digests()
    whole = len(digests) == len(weights.tensors)
    return {
        "path": source.path,
        "sha256": fingerprint_of(weights, digests) if whole else source.sha256,
        "tensors": len(weights.tensors),
        **({} if whole else {"known": len(digests), "sha256_of_known": combine(digests)}),
    }
