"""Seconds from a prompt to the frames of a video, and how much of them is decoding.

The first video of a size compiles the networks; it is told apart. Every counted video has another prompt and seed.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from paired import at_least_one

from mg.config import cli

PROMPTS = (
    "a large red circle moving right on a black background",
    "a small blue square moving down on a white background",
    "on a grey background, a large yellow triangle moving up",
    "a large green cross standing still on a white background",
)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", default="assets/shapes", help="folder")
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="above 1 the transformer is asked twice per step")
    parser.add_argument("--runs", type=int, default=5, help="counted videos after the first, which compiles")
    return at_least_one(parser.parse_args(argv), "num_frames", "image_size", "steps", "runs")


def main(argv: list[str]) -> None:
    """Measure and print."""
    args = _arguments(argv)
    from mg.pipelines import TextToVideoPipeline

    pipe = TextToVideoPipeline.from_pretrained(args.pipeline, device="CPU")

    def seconds(number: int, output_type: str) -> float:
        start = time.perf_counter()
        pipe(
            PROMPTS[number % len(PROMPTS)], num_frames=args.num_frames, height=args.image_size, width=args.image_size,
            num_inference_steps=args.steps, guidance_scale=args.guidance, seed=number, output_type=output_type,
            progress=False,
        )  # fmt: skip
        return time.perf_counter() - start

    first = seconds(0, "np")
    whole = [seconds(number, "np") for number in range(1, args.runs + 1)]
    latents = [seconds(number, "latent") for number in range(1, args.runs + 1)]
    print(f"{args.num_frames} frames of {args.image_size} px, {args.steps} steps, guidance {args.guidance:g}")
    print(f"first video, with compilation: {first:.1f} s")
    print(f"every other: {np.median(whole):.2f} s (median of {args.runs}; {min(whole):.2f} to {max(whole):.2f})")
    print(f"of that text and sampling {np.median(latents):.2f} s, decoding the rest")


if __name__ == "__main__":
    cli.run(main)
