"""The command `medq data`: check a dataset against its release, look for copies in it, or download it."""

from medq import params
from medq.datasets import audit, check, fetch, folds, index
from medq.datasets.audit import summary
from medq.errors import one_of


def add_arguments(parser):
    """Arguments of `medq data`."""
    parser.add_argument(
        "action",
        choices=("check", "audit", "fetch"),
        help="check: counts and readable files; audit: identical and near-identical images, and those "
        "on both sides of a split; fetch: download from Kaggle",
    )
    parser.add_argument("name", metavar="NAME", help="a dataset of params/datasets.yaml")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the datasets (default: MEDQ_DATA)")


def run(args):
    """Do what `args.action` says; exit status 1 where `check` finds the dataset unfit for use."""
    known = params.datasets()
    spec = known[one_of("dataset", args.name, list(known))]
    if args.action == "fetch":
        print(f"{spec.name} is in {fetch(spec, args.root)}.")
        return 0
    if args.action == "check":
        report = check(spec, args.root)
        if len(report.counts):
            print(report.counts.to_string(index=False))
        for kind, sentences in (("note", report.warnings), ("error", report.errors)):
            for sentence in sentences:
                print(f"{kind}: {sentence}")
        print(f"{spec.name}: {'not fit for use' if report.errors else 'fit for use'}.")
        return 1 if report.errors else 0
    frame = index(spec, args.root)
    found = audit(frame, folds(frame, spec))
    if found.empty:
        print(f"{spec.name}: no copies among {len(frame):,} images.")
        return 0
    print(summary(found).to_string(index=False))
    where = "its split" if spec.folds.scheme == "fixed" else "its folds"
    print(
        f"{spec.name}: {len(frame):,} images; spanning groups are on both sides of {where}. "
        "`deduplicate: true` in a profile removes such copies from the training part."
    )
    return 0
