"""Write the text embeddings of class names: python -m ....yolo_world FILE.npz NAME[=TEXT] ..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mvtec_lab.errors import LabError
from mvtec_lab.problems.detection.methods.yolo_world.texts import embed, write_embeddings


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file and return the exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m mvtec_lab.problems.detection.methods.yolo_world")
    parser.add_argument("file", metavar="FILE.npz", help="for model.text_embeddings")
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME[=TEXT]",
        help="a defect type, and how to say it: broken_large='large break'; else the name, its underscores as spaces",
    )
    parser.add_argument("--weights", default="openai", help="a file of CLIP ViT-B/32; openai: open_clip fetches it")
    given = parser.parse_args(arguments)
    pairs = [name.partition("=") for name in given.names]
    texts = {name: text or name.replace("_", " ") for name, _, text in pairs}
    try:
        if not given.file.endswith(".npz"):
            raise LabError(f"{given.file} is no .npz: give FILE.npz, and then the names")
        write_embeddings(given.file, dict(zip(texts, embed(list(texts.values()), given.weights), strict=True)))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.file}: " + ", ".join(f"{name} ({text!r})" for name, text in texts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
