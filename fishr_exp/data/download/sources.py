"""Sources of the image benchmarks: addresses, checksums and terms of use, as far as they are known.

The addresses are from stored copies of DomainBed's script and of the authors' pages. They were not
tested: see `UNTESTED`. Checksums are given where a published one was found.
"""

from __future__ import annotations

from typing import NamedTuple

UNTESTED = (
    "the public links are untested (no network access), the transfer is tested against a local"
    " server; fishr-data check counts the downloaded images"
)


class File(NamedTuple):
    """A file of a dataset."""

    name: str
    urls: tuple[str, ...] = ()  # tried in this order
    md5: str = ""  # hexadecimal
    md5_source: str = ""  # its source


class Source(NamedTuple):
    """Where a dataset comes from."""

    title: str
    datasets: tuple[str, ...]  # the options of the config group dataset that read it
    folder: str  # its name in the download folder
    holds: tuple[str, ...]  # the final content of `folder`: domains, or files
    below: str  # the layout below those
    terms: str
    files: tuple[File, ...]
    by_hand: str = ""  # why and where to download the files manually; empty: automatic
    note: str = ""  # printed at the end


_BU = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"
_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist", "http://yann.lecun.com/exdb/mnist")
_FAIR_USE = "fair-use notice of the authors: non-commercial research and education only"
_NO_LICENSE = "no license was found"
_UCI = "Creative Commons Attribution 4.0 (Alpaydin and Kaynak 1998, from UCI by scikit-learn)"
_TORCHVISION = "torchvision"
_LARSKUE = "LarsKue/context-aware-domain-generalization, for DomainBed's archive"
_DOMAIN_NET = {
    "clipart": ("/groundtruth", "cd0d8f2d77a4e181449b78ed62bccf1e"),
    "infograph": ("", "720380b86f9e6ab4805bb38b6bd135f8"),
    "painting": ("/groundtruth", "1ae32cdb4f98fe7ab5eb0a351768abfd"),
    "quickdraw": ("", "bdc1b6f09f277da1a263389efe0c7a66"),
    "real": ("", "dcc47055e8935767784b7162e7c7cca6"),
    "sketch": ("", "658d8009644040ff7ce30bb2e820850f"),
}
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}

SOURCES = {
    "pacs": Source(
        "PACS",
        ("pacs",),
        "pacs",
        ("art_painting", "cartoon", "photo", "sketch"),
        "class/image",
        _NO_LICENSE,
        (File("PACS.zip", md5="fd5db817f7cdafeef3bfd525aaf9b42e",
              md5_source=_LARSKUE),),
        by_hand="no license was found, and the known links are reported dead; its "
        "author's folder is https://drive.google.com/drive/folders/0B6x7gtvErXgfUU1WcGY5SzdwZVk"
        "?resourcekey=0-2fvpQY_QSyJf2uIECzqPuQ",
    ),
    "vlcs": Source(
        "VLCS",
        ("vlcs",),
        "vlcs",
        ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
        "class/image",
        _NO_LICENSE,
        (File("VLCS.tar.gz", md5="8870171eba660927d9668f4e515928e4",
              md5_source=_LARSKUE),),
        by_hand="no license was found, and the file sits behind a page; JiGen's authors keep a "
        "copy of smaller images at https://www.mediafire.com/file/7yv132lgn1v267r/vlcs.tar.gz/file",
    ),
    "office_home": Source(
        "OfficeHome",
        ("office_home",),
        "office_home",
        ("Art", "Clipart", "Product", "Real World"),
        "class/image",
        _FAIR_USE,
        (File("office_home.zip", md5="b1c14819770c4448fd5b6d931031c91c",
              md5_source=_LARSKUE),),
        by_hand="the file sits behind a page, under a fair-use notice: "
        "https://www.hemanthdv.org/officeHomeDataset.html",
    ),
    "terra_incognita": Source(
        "TerraIncognita",
        ("terra_incognita",),
        "terra_incognita",
        ("location_100", "location_38", "location_43", "location_46"),
        "class/image",
        "Community Data License Agreement, permissive, 1.0 (CDLA-Permissive-1.0)",
        (
            File("eccv_18_all_images_sm.tar.gz", (f"{_LILA}/eccv_18_all_images_sm.tar.gz",),
                 "8143c17aa2a12872b66f284ff211531f", "Pratikn03/K-Bound and others"),
            File("eccv_18_annotations.tar.gz", (f"{_LILA}/eccv_18_annotations.tar.gz",),
                 "66a1f481b44aa1edadf75c9cfbd27aba", "Pratikn03/K-Bound and others"),
        ),
        note="DomainBed's paper counts 24788 images; users of later archives report 24330 "
        "(khanrc/miro, issue 9)",
    ),
    "domain_net": Source(
        "DomainNet",
        ("domain_net",),
        "domain_net",
        tuple(_DOMAIN_NET),
        "class/image",
        _FAIR_USE,
        (
            *(File(f"{domain}.zip", (f"{_BU}{place}/{domain}.zip",), md5,
                   "awslabs' Renate and others")
              for domain, (place, md5) in _DOMAIN_NET.items()),
            *(File(f"{domain}_{part}.txt", (f"{_BU}/domainnet/txt/{domain}_{part}.txt",))
              for domain in _DOMAIN_NET for part in ("train", "test")),
        ),
    ),
    "sviro": Source(
        "SVIRO",
        ("sviro",),
        "sviro",
        ("aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"),
        "class/image",
        "CC BY-NC-SA 4.0 according to third parties: see https://sviro.kl.dfki.de",
        (File("sviro_grayscale_rectangle_classification.zip",
              ("https://sviro.kl.dfki.de/?wpdmdl=1731",)),),
    ),
    "spawrious": Source(
        "Spawrious",
        ("spawrious",),
        "spawrious",
        ("0", "1"),
        "location/class/image",
        "MIT (aengusl/spawrious)",
        (File("spawrious224.tar.gz",
              ("https://www.dropbox.com/s/e40j553480h3f3s/spawrious224.tar.gz?dl=1",)),),
    ),
    "mnist": Source(
        "MNIST",
        ("colored_mnist", "colored_mnist_domainbed", "rotated_mnist"),
        "MNIST",
        tuple(f"raw/{name}" for name in _MNIST_MD5),
        "",
        "CC BY-SA 3.0, according to TensorFlow's documentation",
        tuple(
            File(f"{name}.gz", tuple(f"{place}/{name}.gz" for place in _MNIST), md5,
                 _TORCHVISION)
            for name, md5 in _MNIST_MD5.items()
        ),
    ),
}  # fmt: skip


def terms_of(dataset: str) -> str:
    """Return the terms of use of an option of `dataset`; empty if they are not known."""
    found = [source.terms for source in SOURCES.values() if dataset in source.datasets]
    embedded = _UCI if dataset in ("colored_digits", "rotated_digits") else ""
    return found[0] if found else embedded
