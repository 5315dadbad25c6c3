"""Known facts about the image benchmarks, to compare a copy on disk with."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """The numbers of classes and images of a dataset; None if no source was found."""

    classes: int
    images: int | None
    title: str
    source: str


_GULRAJANI = "Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434)"
KNOWN = {
    "pacs": Known(7, 9991, "PACS", f"Li et al. 2017; {_GULRAJANI}"),
    "vlcs": Known(5, 10729, "VLCS", f"Fang et al. 2013; {_GULRAJANI}"),
    "office_home": Known(65, 15588, "OfficeHome", f"Venkateswara et al. 2017; {_GULRAJANI}"),
    "terra_incognita": Known(10, 24788, "TerraIncognita", f"Beery et al. 2018; {_GULRAJANI}"),
    "domain_net": Known(345, 586575, "DomainNet", f"Peng et al. 2019; {_GULRAJANI}"),
    "sviro": Known(7, None, "SVIRO", "Dias Da Cruz et al. 2020; DomainBed's code"),
    "spawrious": Known(4, 50688, "a variant of Spawrious",
                       "Lynch et al. 2023; DomainBed's code, with 3168 images per folder"),
}  # fmt: skip
