"""Write `facts.json`: `python -m encoder_bench.encoders.catalog.write_facts`."""

from __future__ import annotations

import json
from typing import Any

from encoder_bench.base.files import write_text
from encoder_bench.encoders.architecture import architecture_facts
from encoder_bench.encoders.catalog import CATALOG, FACTS_FILE, transformers_configs
from encoder_bench.encoders.spec import EncoderSpec


def can_be_computed(spec: EncoderSpec) -> bool:
    """Return whether an encoder's architecture is known without its weights."""
    return spec.source != "hf" or spec.locator in transformers_configs()


def main() -> None:
    """Compute every encoder's facts and replace the file."""
    facts: dict[str, dict[str, Any]] = {}
    for spec in CATALOG.values():
        if can_be_computed(spec):
            facts[spec.sources[0]] = architecture_facts(spec)
            print(spec.name, facts[spec.sources[0]])
    lines = [f" {json.dumps(key)}: {json.dumps(facts[key])}" for key in sorted(facts)]
    write_text(FACTS_FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
