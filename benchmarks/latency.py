"""Time all backbones of a profile and their peers: the part of a batch that needs a quiet machine.

    python benchmarks/latency.py prepare reference    convert for the other runtimes; any time
    python benchmarks/latency.py regimes reference    fp32 baselines, PTQ and QAT under both engines
    python benchmarks/latency.py peers reference      the other runtimes, as prepared

Each backbone is one process, its result is kept, and the same command goes on where it was stopped.
"""

import argparse
import subprocess
import sys
import time

from medq import latency, params as profiles, paths, peers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "regimes", "peers"))
    parser.add_argument("profile")
    parser.add_argument("--dataset", help="of the models for the peers (default: the profile's first)")
    parser.add_argument("--backbone", nargs="+", help="default: all of the profile")
    parser.add_argument(
        "--runtime", nargs="+", choices=[r.name for r in peers.RUNTIMES], help="limit the peers to these"
    )
    args = parser.parse_args()
    params = profiles.load(args.profile)
    backbones, failed = args.backbone or params.backbones, []
    if len(backbones) == 1:
        one(args, params, backbones[0])
        return
    for backbone in backbones:
        start = time.perf_counter()
        if subprocess.run([sys.executable, __file__, *sys.argv[1:], "--backbone", backbone]).returncode:
            failed.append(backbone)
        print(f"{args.what} {backbone}: {time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def one(args, params, backbone):
    """Do it for one backbone and say where the result lies."""
    if args.what == "regimes":
        print(latency.run(params, paths.Cell(params.profile, "", backbone, "")))
        return
    fold = 0 if params.folds == "all" else params.folds[0]
    cell = paths.Cell(params.profile, args.dataset or params.datasets[0], backbone, "peers", fold)
    print((peers.build if args.what == "prepare" else peers.run)(params, cell, args.runtime))


if __name__ == "__main__":
    main()
