"""Run the benchmarks in turn, and put their tables into docs/performance.md.

    subtok bench all --json figures/                    # some minutes on a quiet machine
    subtok bench all --json figures/ --quick            # fewer rounds
    subtok bench all --json figures/ --only watershed startup
    subtok bench all --json figures/ --markdown docs/performance.md
    subtok bench all --json figures/ --markdown docs/performance.md --only   # from what is there

Each runs in a process of its own, one at a time, and writes DIR/NAME.json. One that fails does not
keep the others from running; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from figures import markdown, read_json

FOLDER = Path(__file__).parent

# Options of each benchmark: as it runs by default, and quickly. Benchmarks that need files which
# not everybody has (caches of photos, COCO, weights of SAM, a GPU) are run by themselves; a JSON
# file that they left in the folder gets into the page as well.
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "startup": ([], ["--rounds", "2", "--tasks", "strength"]),
    "watershed": (
        ["--photos", "6", "--rounds", "3"],
        ["--photos", "2", "--rounds", "1", "--sides", "512", "--largest", "1024"],
    ),
    "decoding": (
        ["--images", "4", "--megapixels", "1", "4.2", "12"],
        ["--images", "2", "--megapixels", "4.2", "--runs", "3"],
    ),
    "loader": (
        ["--model", "emulated", "--images", "320", "--rounds", "1"],
        ["--model", "emulated", "--images", "240", "--rounds", "1"],
    ),
    "memory": (["--batches", "400"], ["--batches", "100"]),
    "boundary": (["--rounds", "1", "--side", "256"], ["--rounds", "1", "--side", "128"]),
    "token_embedding": (
        ["--rounds", "1", "--side", "384", "--tokens", "100"],
        ["--rounds", "1", "--side", "192", "--tokens", "36"],
    ),
    "image_free": (["--rounds", "3"], ["--rounds", "1"]),
    "batch_plan": (["--rows", "5_000_000"], ["--rows", "1_000_000"]),
}
LIMIT_S = 600


def run(name: str, folder: Path, quick: bool) -> bool:
    """Run one benchmark; whether it went well."""
    command = [sys.executable, str(FOLDER / f"bench_{name}.py"), *RUNS[name][quick]]
    started = time.monotonic()
    print(f"{name} …", end=" ", flush=True)
    try:
        done = subprocess.run(
            [*command, "--json", str(folder / f"{name}.json")],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        trouble = done.stderr[-2000:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        trouble = f"not done after {LIMIT_S} s"
    print(f"{time.monotonic() - started:.0f} s" + (" FAILED" if trouble else ""), flush=True)
    if trouble:
        print(trouble, file=sys.stderr)
    return not trouble


def refresh(page: str, folder: Path) -> str:
    """Return a page with the tables of the folder between its markers.

    What stands between ``<!-- figures: NAME -->`` and ``<!-- end -->`` is replaced where the folder
    holds NAME.json, and stays where it does not.
    """

    def tables(match: re.Match[str]) -> str:
        file = folder / f"{match[1]}.json"
        if not file.exists():
            return match[0]
        record, found = read_json(file)
        at, versions = record["machine"], record["machine"]["versions"]
        source = (
            f"`{record['command']}`, {record['date']}: {at['cpu']}, {at['cores']} cores, "
            f"Python {at['python']}, "
            + ", ".join(f"{package} {number}" for package, number in versions.items())
            + f"; load before {at['load_before']}."
        )
        parts = [f"<!-- figures: {match[1]} -->", source, *map(markdown, found), "<!-- end -->"]
        return "\n\n".join(parts)

    return re.sub(r"<!-- figures: (\w+) -->.*?<!-- end -->", tables, page, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="subtok bench all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="DIR", required=True, help="one file each")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller images")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="page to put the tables into")
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=list(RUNS), help="only these")
    args = parser.parse_args()
    args.json.mkdir(parents=True, exist_ok=True)
    names = list(RUNS) if args.only is None else args.only
    results = {name: run(name, args.json, args.quick) for name in names}
    if args.markdown:
        page = args.markdown.read_text(encoding="utf-8")
        args.markdown.write_text(refresh(page, args.json), encoding="utf-8")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
