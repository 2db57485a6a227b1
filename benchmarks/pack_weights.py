r"""A finished, evaluated run becomes a model that comes with the package, `openjepa.load(NAME)`, with its card.

    openjepa evaluate RUN --train DATA --test DATA --baselines --out RUN/evaluation.json
    python benchmarks/pack_weights.py RUN NAME --terms "Whose images, under which terms." \
        --measured-with "openjepa evaluate RUN --train DATA --test DATA --baselines"

Read the card, `src/openjepa/weights/NAME/README.md`, before it is committed: it names data and commands as they were
on this machine. It may be edited; the other files may not.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import openjepa
from openjepa.errors import UserError
from openjepa.shipped import WEIGHTS, pack


def main() -> None:
    """Pack, then tell how large it is and whether it still says the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="Folder of a finished run with an evaluation.json.")
    parser.add_argument("name", help="What openjepa.load will call it.")
    parser.add_argument("--terms", required=True, help="Whose data, under which terms (Markdown).")
    parser.add_argument("--measured-with", required=True, help="The command of the figures.")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="Another folder than the package's.")
    options = parser.parse_args()
    try:
        out = pack(
            options.run,
            options.weights / options.name,
            terms=options.terms,
            measured_with=options.measured_with,
        )
    except UserError as error:
        sys.exit(f"pack_weights: {error}")
    print((out / "README.md").read_text(encoding="utf-8"))
    for folder in (out, options.weights):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{folder}: {size:,} bytes")
    print(
        f"smallest cosine between its features and the run's, each less its mean: {agreement(options.run, out):.7f}"
    )


@torch.inference_mode()
def agreement(run: Path, out: Path) -> float:
    """Smallest cosine of the pooled features of 64 images of noise, before and after packing.

    The mean over images is taken away: it makes up most of a feature and would hide what differs between them.
    """
    before, after = openjepa.load(run), openjepa.load(out)
    shape = before.shape
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, shape.in_channels, *shape.image_size, generator=generator)
    one, other = (model.target_encoder(images).mean(dim=1) for model in (before, after))  # (64, D)
    return F.cosine_similarity(one - one.mean(dim=0), other - other.mean(dim=0)).min().item()


if __name__ == "__main__":
    main()
